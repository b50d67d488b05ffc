// The page: what is filled in becomes a request, and what comes back is played, drawn and shown.

import { Drawing } from "./drawing.js";
import { Player } from "./player.js";
import { Recorder } from "./recorder.js";
import * as api from "./speech.js";

const at = (id) => document.getElementById(id);
const LEVELS = ["very_low", "low", "moderate", "high", "very_high"];
const CONSENT = "The speaker is me, or has agreed that this voice is cloned.";
const drawing = new Drawing(at("wave"), at("spectrogram"));
const recorder = new Recorder();

let model = null; // the server's description of it
let player = null; // of the newest speech
let running = null; // what aborts the request at work
let spans = []; // captions
let microphone = null; // the newest recording

const two = (seconds) => `${seconds.toFixed(2)} s`;

function show(state, text) {
  document.body.dataset.state = state;
  at("status").textContent = text;
}

function complain(place, error) {
  at(place).textContent = error.status === 401 ? `${error.message} (below, at “API key”)` : error.message;
  at(place).hidden = false;
  if (error.status === 401) at("access").open = true;
}

// Voices and model

async function loadVoices(chosen) {
  const found = await api.voices();
  const select = at("voice");
  const option = (value, text, source) => {
    const made = new Option(text, value);
    made.dataset.source = source;
    return made;
  };
  select.replaceChildren(
    ...found.data.map((voice) => option(voice.id, voice.name, voice.source)),
    ...found.made_up.map((gender) => option(gender, `made up: ${gender}`, "made_up")),
  );
  if (chosen) select.value = chosen;
  chooseVoice();
}

function chooseVoice() {
  const source = at("voice").selectedOptions[0]?.dataset.source;
  const levels = source === "made_up";
  at("pitch").disabled = at("speed").disabled = !levels;
  at("levels-note").hidden = levels || !at("voice").querySelector("[data-source=made_up]");
  at("forget").hidden = source !== "upload" && source !== "mix";
}

async function connect() {
  const state = await api.state();
  at("server").textContent = { ready: "ready", starting: "warming up" }[state] ?? state;
  at("server").dataset.state = state;
  if (!model && state !== "unreachable") {
    try {
      model = await api.model();
      await loadVoices();
      at("model").textContent = `${model.id} · ${model.spark_jax.languages.join(", ")} · ${model.spark_jax.sample_rate / 1000} kHz`;
      at("text").maxLength = model.spark_jax.max_characters;
      const controls = model.spark_jax.controls;
      const note = controls.includes("gender") ? "" : "This model has one voice of its own: it makes up no others.";
      at("voice-note").textContent = controls.includes("cloning") ? note : `${note} It has not learned to clone.`.trim();
      at("voice-note").hidden = !at("voice-note").textContent;
      at("error").hidden = true;
      count();
    } catch (error) {
      complain("error", error);
    }
  }
  setTimeout(connect, state === "ready" && model ? 15000 : 1000);
}

function count() {
  const most = model?.spark_jax.max_characters;
  at("count").textContent = `${at("text").value.length}${most ? ` of ${most}` : ""} characters`;
}

// Speech

function request() {
  const fields = {
    input: at("text").value,
    voice: at("voice").value || undefined,
    seed: Number(at("seed").value),
    speed: Math.round(100 * 2 ** Number(at("tempo").value)) / 100,
    sample_rate: model?.spark_jax.sample_rate,
  };
  if (!at("pitch").disabled) {
    fields.pitch = LEVELS[at("pitch").value];
    fields.speed_level = LEVELS[at("speed").value];
  }
  return fields;
}

function clear() {
  document.body.dataset.spoken = "true";
  player?.close();
  spans = [];
  at("captions").replaceChildren();
  for (const id of ["error", "download", "audio", "captions-title"]) at(id).hidden = true;
  for (const id of ["first", "factor", "length", "gaps"]) at(id).textContent = "–";
  at("audio").pause();
  URL.revokeObjectURL(at("download").href);
  drawing.clear();
}

async function speak(event) {
  event?.preventDefault();
  if (running || !at("speak").reportValidity()) return;
  clear();
  const own = (running = new AbortController());
  const fields = request();
  const streamed = at("stream").checked;
  const current = (player = new Player(fields.sample_rate));
  at("start").disabled = true;
  at("stop").disabled = false;
  show("waiting", "Waiting for the first sound …");
  const begin = performance.now();
  const since = () => (performance.now() - begin) / 1000;
  let told = "";
  try {
    await api.speak(
      fields,
      (found) => {
        if (found.type === "warnings") told = found.text;
        if (found.type === "speech.text.span") addSpan(found);
        if (found.type !== "speech.audio.delta") return;
        if (!current.count) {
          at("first").textContent = `${Math.round(1000 * since())} ms`;
          show(streamed ? "playing" : "waiting", streamed ? "Speaking …" : "The speech is made …");
          at("pause").disabled = !streamed;
        }
        const samples = api.samplesOf(found.audio);
        current.push(samples, streamed);
        drawing.push(samples);
        at("factor").textContent = (since() / current.seconds).toFixed(2);
        at("length").textContent = two(current.seconds);
        at("gaps").textContent = streamed ? current.gaps : "–";
      },
      own.signal,
    );
    if (!streamed) {
      current.playAll();
      at("pause").disabled = false;
      show("playing", "Speaking …");
    }
    finish(current, told);
  } catch (error) {
    if (error.name === "AbortError") {
      if (current.count) finish(current, told);
      show("idle", current.count ? "Stopped." : "Stopped before the first sound.");
    } else {
      complain("error", error);
      show("error", "There is no speech.");
    }
  } finally {
    running = null;
    at("start").disabled = false;
    if (document.body.dataset.state !== "playing") at("stop").disabled = true;
  }
}

function finish(current, told) {
  const link = URL.createObjectURL(current.wav());
  at("download").href = at("audio").src = link;
  at("download").hidden = at("audio").hidden = false;
  for (const button of at("captions").querySelectorAll("button")) button.disabled = false;
  at("status").textContent = told ? `Note: ${told}` : at("status").textContent;
}

function stop() {
  running?.abort();
  if (document.body.dataset.state === "playing") show("idle", "Stopped.");
  player?.close();
  at("audio").pause();
  at("pause").disabled = at("stop").disabled = true;
}

function addSpan(span) {
  const known = span.index in spans;
  spans[span.index] = span;
  if (known) return;
  const item = document.createElement("li");
  const button = document.createElement("button");
  const time = document.createElement("time");
  time.textContent = span.start.toFixed(1).padStart(4);
  button.append(time, span.text);
  button.type = "button";
  button.disabled = true;
  button.addEventListener("click", () => {
    stop();
    at("audio").currentTime = span.start;
    at("audio").play();
  });
  item.append(button);
  at("captions").append(item);
  at("captions-title").hidden = false;
}

// What is heard now, from the stream or from the player of the whole speech.
function position() {
  const audio = at("audio");
  return audio.hidden || (audio.paused && !audio.currentTime) || document.body.dataset.state === "playing"
    ? (player?.position ?? 0)
    : audio.currentTime;
}

function animate() {
  if (player) {
    const now = position();
    drawing.draw(now, player.seconds);
    [...at("captions").children].forEach((item, place) => {
      const heard = now > 0 && now >= spans[place].start && now < (spans[place + 1]?.start ?? (spans[place].end ?? Infinity) + 0.2);
      if (heard) item.setAttribute("aria-current", "true");
      else item.removeAttribute("aria-current");
    });
    if (document.body.dataset.state === "playing" && !running && player.silent) {
      if (at("status").textContent === "Speaking …") at("status").textContent = "Done.";
      document.body.dataset.state = "done";
      at("pause").disabled = at("stop").disabled = true;
    }
  }
  requestAnimationFrame(animate);
}

// Cloning

async function keepVoice(event) {
  event.preventDefault();
  at("clone-error").hidden = true;
  const recording = microphone ?? at("recording").files[0];
  if (!recording) {
    complain("clone-error", { message: "there is no recording: choose a file, or record one" });
    return;
  }
  at("keep").disabled = true;
  at("clone-status").textContent = "The voice is taken from the recording …";
  try {
    const made = await api.keep(at("name").value, recording, at("transcript").value, CONSENT);
    await loadVoices(made.id);
    at("clone-status").textContent = [`“${made.name}” is kept and chosen.`, ...made.warnings].join(" Note: ");
  } catch (error) {
    at("clone-status").textContent = "";
    complain("clone-error", error);
  } finally {
    at("keep").disabled = false;
  }
}

async function record() {
  if (recorder.recording) {
    recorder.stop();
    return;
  }
  try {
    await recorder.start(
      (recording) => {
        takeRecording(recording);
        at("record").textContent = "Record";
        at("record").setAttribute("aria-pressed", "false");
        at("recorded").textContent = "recorded";
      },
      (seconds) => (at("recorded").textContent = `recording, ${seconds.toFixed(0)} s`),
    );
    at("record").textContent = "Stop";
    at("record").setAttribute("aria-pressed", "true");
  } catch (error) {
    complain("clone-error", { message: `the microphone cannot be used: ${error.message}` });
  }
}

function takeRecording(recording) {
  microphone = recording;
  const preview = at("preview");
  URL.revokeObjectURL(preview.src);
  preview.src = URL.createObjectURL(recording ?? at("recording").files[0]);
  preview.hidden = false;
}

async function forgetVoice() {
  const name = at("voice").selectedOptions[0].text;
  if (!confirm(`Delete the voice “${name}”?`)) return;
  await api.forget(at("voice").value).catch((error) => complain("error", error));
  await loadVoices();
}

// Wiring

function follow(id, text) {
  const update = () => {
    at(`${id}-value`).textContent = text(at(id).value);
    at(id).setAttribute("aria-valuetext", text(at(id).value));
  };
  at(id).addEventListener("input", update);
  update();
}

follow("pitch", (value) => LEVELS[value].replace("_", " "));
follow("speed", (value) => ["very slow", "slow", "moderate", "fast", "very fast"][value]);
follow("tempo", (value) => `${(2 ** Number(value)).toFixed(2)} ×`);
at("speak").addEventListener("submit", speak);
at("stop").addEventListener("click", stop);
at("pause").addEventListener("click", async () => {
  await player.toggle();
  at("pause").textContent = player.paused ? "Go on" : "Pause";
});
at("text").addEventListener("input", count);
at("voice").addEventListener("change", chooseVoice);
at("forget").addEventListener("click", forgetVoice);
at("dice").addEventListener("click", () => (at("seed").value = crypto.getRandomValues(new Uint32Array(1))[0]));
at("audio").addEventListener("play", () => {
  player?.close();
  if (document.body.dataset.state === "playing") document.body.dataset.state = "done";
  at("pause").disabled = at("stop").disabled = true;
});
at("clone").addEventListener("submit", keepVoice);
at("record").addEventListener("click", record);
at("recording").addEventListener("change", () => takeRecording(null));
function useKey(event) {
  event.preventDefault();
  sessionStorage.setItem("key", at("key").value);
  api.setKey(at("key").value);
}
at("key").addEventListener("change", useKey);
at("keys").addEventListener("submit", useKey);
addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) speak(event);
  if (event.key === "Escape") stop();
});
addEventListener("resize", () => player && drawing.draw(position(), player.seconds));
at("key").value = sessionStorage.getItem("key") ?? "";
api.setKey(at("key").value);
count();
connect();
animate();
