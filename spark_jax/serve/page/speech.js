// The server's API: models, voices, and speech as a stream of events.

export class ApiError extends Error {
  constructor(status, error) {
    super(error?.message ?? `the server answered ${status}`);
    this.status = status;
    this.param = error?.param ?? null;
  }
}

let key = "";

export function setKey(value) {
  key = value;
}

async function call(path, options = {}) {
  const headers = { ...options.headers };
  if (key) headers.Authorization = `Bearer ${key}`;
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, { message: "the server cannot be reached" });
  }
  if (!answer.ok) {
    const body = await answer.json().catch(() => null);
    throw new ApiError(answer.status, body?.error);
  }
  return answer;
}

const json = async (path, options) => (await call(path, options)).json();

export const model = async () => (await json("v1/models")).data[0];
export const voices = () => json("v1/audio/voices");
export const forget = (id) => json(`v1/audio/voices/${encodeURIComponent(id)}`, { method: "DELETE" });

export async function state() {
  const answer = await fetch("health").catch(() => null);
  return answer ? (await answer.json()).status : "unreachable";
}

export function keep(name, recording, transcript, consent) {
  const body = new FormData();
  body.append("name", name);
  body.append("consent", consent);
  if (transcript) body.append("transcript", transcript);
  body.append("audio_sample", recording, recording.name ?? "recording");
  return json("v1/audio/voices", { method: "POST", body });
}

// Calls `take` with each event of a speech.
export async function speak(fields, take, signal) {
  const answer = await call("v1/audio/speech", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...fields, response_format: "pcm", stream_format: "sse", captions: true }),
    signal,
  });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  const warnings = answer.headers.get("spark-jax-warnings");
  if (warnings) take({ type: "warnings", text: warnings });
  let rest = "", ended = false;
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const text of events) {
      const event = JSON.parse(text.replace(/^data: /, ""));
      if (event.type === "error") throw new ApiError(500, event.error);
      ended ||= event.type === "speech.audio.done";
      take(event);
    }
  }
  if (!ended) throw new ApiError(0, { message: "the server broke off" });
}

// Samples of 16 bits in base64, as numbers from -1 to 1.
export function samplesOf(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  return Float32Array.from({ length: bytes.length / 2 }, (_, place) => view.getInt16(2 * place, true) / 32768);
}
