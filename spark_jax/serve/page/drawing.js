// A waveform and a spectrogram that grow with the speech.

const WINDOW = 512;
const HOP = 160;
const FLOOR = -80; // dB: black
const TOP = -10; // dB: brightest

const hann = Float32Array.from({ length: WINDOW }, (_, i) => 0.5 - 0.5 * Math.cos((2 * Math.PI * i) / WINDOW));
const twiddles = Array.from({ length: WINDOW / 2 }, (_, i) => {
  const angle = (-2 * Math.PI * i) / WINDOW;
  return [Math.cos(angle), Math.sin(angle)];
});

// Levels in dB of the frequencies of a window, by a Fourier transform of radix 2.
function spectrum(samples) {
  const real = new Float32Array(WINDOW);
  const imaginary = new Float32Array(WINDOW);
  const bits = Math.log2(WINDOW);
  for (let i = 0; i < WINDOW; i++) {
    let reversed = 0;
    for (let bit = 0; bit < bits; bit++) reversed |= ((i >> bit) & 1) << (bits - 1 - bit);
    real[reversed] = samples[i] * hann[i];
  }
  for (let size = 2; size <= WINDOW; size *= 2) {
    const step = WINDOW / size;
    for (let start = 0; start < WINDOW; start += size) {
      for (let k = 0; k < size / 2; k++) {
        const [cos, sin] = twiddles[k * step];
        const a = start + k, b = a + size / 2;
        const re = real[b] * cos - imaginary[b] * sin;
        const im = real[b] * sin + imaginary[b] * cos;
        real[b] = real[a] - re;
        imaginary[b] = imaginary[a] - im;
        real[a] += re;
        imaginary[a] += im;
      }
    }
  }
  return Float32Array.from(
    { length: WINDOW / 2 },
    (_, i) => 10 * Math.log10((real[i] ** 2 + imaginary[i] ** 2) / (WINDOW / 4) ** 2 + 1e-12),
  );
}

// From dark blue over red to yellow.
const stops = [[8, 10, 32], [60, 20, 110], [165, 40, 110], [235, 100, 60], [250, 200, 90], [255, 250, 210]];
function color(level) {
  const place = Math.max(0, Math.min(0.9999, (level - FLOOR) / (TOP - FLOOR))) * (stops.length - 1);
  const from = Math.floor(place), part = place - from;
  return stops[from].map((value, i) => value + part * (stops[from + 1][i] - value));
}

function fit(canvas) {
  const ratio = devicePixelRatio || 1;
  const width = Math.round(canvas.clientWidth * ratio), height = Math.round(canvas.clientHeight * ratio);
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  return [canvas.getContext("2d"), width, height];
}

export class Drawing {
  constructor(wave, spectrogram) {
    Object.assign(this, { wave, spectrogram });
    this.clear();
  }

  clear() {
    this.peaks = []; // lowest and highest sample of each hop
    this.rest = new Float32Array(0);
    this.columns = new OffscreenCanvas(1024, WINDOW / 2);
    this.draw(0, 0);
  }

  push(samples) {
    const all = new Float32Array(this.rest.length + samples.length);
    all.set(this.rest);
    all.set(samples, this.rest.length);
    let place = 0;
    for (; place + WINDOW <= all.length; place += HOP) {
      const hop = all.subarray(place, place + HOP);
      this.#column(spectrum(all.subarray(place, place + WINDOW)));
      this.peaks.push([Math.min(...hop), Math.max(...hop)]);
    }
    this.rest = all.slice(place);
  }

  #column(levels) {
    const x = this.peaks.length;
    if (x >= this.columns.width) {
      const wider = new OffscreenCanvas(2 * this.columns.width, WINDOW / 2);
      wider.getContext("2d").drawImage(this.columns, 0, 0);
      this.columns = wider;
    }
    const image = new ImageData(1, levels.length);
    levels.forEach((level, i) => image.data.set([...color(level), 255], 4 * (levels.length - 1 - i)));
    this.columns.getContext("2d").putImageData(image, x, 0);
  }

  // Draws both; `position` of `seconds` has been heard.
  draw(position, seconds) {
    const [context, width, height] = fit(this.wave);
    context.clearRect(0, 0, width, height);
    const heard = seconds ? position / seconds : 0;
    const [played, coming] = [this.wave, this.spectrogram].map((canvas) => getComputedStyle(canvas).color);
    const tallest = this.peaks.reduce((most, [low, high]) => Math.max(most, -low, high), 0.05);
    for (let x = 0; x < width && this.peaks.length; x++) {
      const from = Math.floor((x / width) * this.peaks.length);
      const to = Math.max(from + 1, Math.floor(((x + 1) / width) * this.peaks.length));
      let low = 0, high = 0;
      for (let i = from; i < to; i++) {
        low = Math.min(low, this.peaks[i][0]);
        high = Math.max(high, this.peaks[i][1]);
      }
      context.fillStyle = x / width < heard ? played : coming;
      const top = (0.5 - (0.46 * high) / tallest) * height, bottom = (0.5 - (0.46 * low) / tallest) * height;
      context.fillRect(x, top, 1, Math.max(1, bottom - top));
    }
    const [picture, wide, tall] = fit(this.spectrogram);
    picture.clearRect(0, 0, wide, tall);
    if (this.peaks.length) {
      picture.drawImage(this.columns, 0, 0, this.peaks.length, WINDOW / 2, 0, 0, wide, tall);
      picture.fillStyle = "rgba(255, 255, 255, 0.85)";
      if (heard > 0 && heard < 1) picture.fillRect(heard * wide, 0, 2, tall);
    }
  }
}
