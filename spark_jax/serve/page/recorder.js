// Records the microphone, until it is stopped or half a minute is over.

const LONGEST = 30; // s

export class Recorder {
  #media = null;

  get recording() {
    return this.#media !== null;
  }

  // Begins; `done` gets the recording, `tick` the seconds so far.
  async start(done, tick) {
    const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
    const media = new MediaRecorder(stream);
    const parts = [];
    const begin = performance.now();
    const timer = setInterval(() => {
      const seconds = (performance.now() - begin) / 1000;
      tick(seconds);
      if (seconds >= LONGEST) this.stop();
    }, 200);
    media.ondataavailable = (event) => parts.push(event.data);
    media.onstop = () => {
      clearInterval(timer);
      stream.getTracks().forEach((track) => track.stop());
      this.#media = null;
      done(new File(parts, "microphone", { type: media.mimeType }));
    };
    this.#media = media;
    media.start();
  }

  stop() {
    this.#media?.stop();
  }
}
