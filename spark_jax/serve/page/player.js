// Plays samples without a gap as they come, and keeps them.

const AHEAD = 0.06; // s between the first samples and their sound

export class Player {
  constructor(rate) {
    this.rate = rate;
    this.chunks = [];
    this.count = 0;
    this.gaps = 0;
    this.context = new AudioContext({ sampleRate: rate });
    this.next = null; // when the next sample is heard, in the context's time
    this.played = []; // [from in the context's time, from in the speech, seconds] of each chunk
  }

  get seconds() {
    return this.count / this.rate;
  }

  // Takes samples; with `heard` they are played after those before.
  push(samples, heard = true) {
    const begin = this.seconds;
    this.chunks.push(samples);
    this.count += samples.length;
    if (heard) this.#play(samples, begin);
  }

  playAll() {
    let begin = 0;
    for (const samples of this.chunks) {
      this.#play(samples, begin);
      begin += samples.length / this.rate;
    }
  }

  #play(samples, begin) {
    if (!samples.length) return;
    const buffer = this.context.createBuffer(1, samples.length, this.rate);
    buffer.copyToChannel(samples, 0);
    const source = new AudioBufferSourceNode(this.context, { buffer });
    source.connect(this.context.destination);
    const now = this.context.currentTime;
    if (this.next === null) this.next = now + AHEAD;
    else if (this.next < now) {
      this.gaps += 1;
      this.next = now + AHEAD;
    }
    source.start(this.next);
    this.played.push([this.next, begin, buffer.duration]);
    this.next += buffer.duration;
  }

  // Seconds of the speech that have been heard.
  get position() {
    const now = this.context.currentTime;
    for (const [from, begin, duration] of this.played.toReversed()) {
      if (now >= from) return begin + Math.min(now - from, duration);
    }
    return 0;
  }

  get silent() {
    return this.next === null || this.context.currentTime >= this.next;
  }

  get paused() {
    return this.context.state === "suspended";
  }

  toggle() {
    return this.paused ? this.context.resume() : this.context.suspend();
  }

  close() {
    if (this.context.state !== "closed") this.context.close();
  }

  // All samples as a WAV file.
  wav() {
    const bytes = new ArrayBuffer(44 + 2 * this.count);
    const view = new DataView(bytes);
    const words = (place, text) => [...text].forEach((letter, index) => view.setUint8(place + index, letter.charCodeAt(0)));
    words(0, "RIFF");
    view.setUint32(4, 36 + 2 * this.count, true);
    words(8, "WAVEfmt ");
    [[16, 16, 4], [20, 1, 2], [22, 1, 2], [24, this.rate, 4], [28, 2 * this.rate, 4], [32, 2, 2], [34, 16, 2]].forEach(
      ([place, value, size]) => (size === 4 ? view.setUint32(place, value, true) : view.setUint16(place, value, true)),
    );
    words(36, "data");
    view.setUint32(40, 2 * this.count, true);
    let place = 44;
    for (const chunk of this.chunks) {
      for (const sample of chunk) {
        view.setInt16(place, Math.max(-32768, Math.min(32767, Math.round(sample * 32768))), true);
        place += 2;
      }
    }
    return new Blob([bytes], { type: "audio/wav" });
  }
}
