// The writing page: continuations in a list at the caret, and colours for how surprising each word is.

const $ = (id) => document.getElementById(id);
const text = $("text"), mirror = $("mirror"), popup = $("popup"), list = $("list");
const knobs = ["temperature", "top_p", "length"].map($);
const NUM_OPTIONS = 3;
const PAUSE = 400; // ms without a key before words are coloured

let contextLength = 512;
let tabLeaves = false; // after Escape, Tab moves on, so that nobody is caught in the text

// The server

class ServerError extends Error {}

async function ask(path, body, signal) {
  const headers = body ? { "content-type": "application/json" } : {};
  const token = recall(sessionStorage, "token");
  if (token) headers.authorization = `Bearer ${token}`;
  let response;
  try {
    response = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server does not answer. Is it still running?");
  }
  if (response.ok) return response;
  if (response.status === 401) $("login").hidden = false;
  const answer = await response.json().catch(() => ({}));
  throw new ServerError(answer.error?.message ?? `The server answered with status ${response.status}.`);
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ; ) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line === "data: [DONE]") return;
      const event = JSON.parse(line.slice("data: ".length));
      if (event.error) throw new ServerError(event.error.message);
      yield event;
    }
  }
}

function say(message, isProblem = false) {
  $("status").textContent = message;
  $("status").classList.toggle("problem", isProblem);
}

/** Runs an action; what goes wrong is said, and what was given up is nothing wrong. */
async function trying(action) {
  try {
    await action();
  } catch (error) {
    if (error.name === "AbortError") return;
    close();
    say(error instanceof ServerError ? error.message : `The page failed: ${error.message}`, true);
  }
}

// Continuations

let options = []; // their texts, when the list is open
let chosen = 0;
let request = null; // what brings them
let caret = 0; // where they belong

const isOpen = () => !popup.hidden;

async function proposeContinuations() {
  close();
  caret = text.selectionEnd;
  const prompt = text.value.slice(0, caret);
  if (!prompt.trim()) return say("Write a few words first.");
  const [temperature, top_p, max_tokens] = knobs.map((knob) => Number(knob.value));
  request = new AbortController();
  open();
  say("Writing…");
  const wish = { n: NUM_OPTIONS, max_tokens, temperature, top_p, truncate_prompt_tokens: contextLength - max_tokens };
  const response = await ask("/v1/completions", { prompt, stream: true, ...wish }, request.signal);
  for await (const event of events(response)) {
    for (const choice of event.choices) {
      options[choice.index] += choice.text;
      show(choice.index, choice.finish_reason !== null, prompt);
    }
  }
  request = null;
  const hasKeys = matchMedia("(hover: hover)").matches;
  say(hasKeys ? "Three continuations. Arrow keys choose, Enter takes one, Escape closes." : "Tap the one you like.");
}

function open() {
  options = Array(NUM_OPTIONS).fill("");
  list.replaceChildren(...options.map((_, index) => {
    const item = document.createElement("li");
    item.id = `option-${index}`;
    item.role = "option";
    item.className = "writing";
    item.addEventListener("pointerdown", (event) => event.preventDefault()); // the text keeps the focus
    item.addEventListener("click", () => take(index));
    item.addEventListener("pointermove", () => choose(index));
    return item;
  }));
  popup.hidden = false;
  draw();
  const mark = mirror.querySelector(".caret");
  popup.style.top = `${mark.offsetTop + mark.offsetHeight + 4}px`;
  choose(0);
}

function show(index, isWhole, prompt) {
  const item = list.children[index];
  item.textContent = withCapitals(prompt, options[index]).trim();
  item.classList.toggle("writing", !isWhole);
  if (index === chosen) popup.scrollIntoView({ block: "nearest" });
}

/** The model knows no capitals: here are those of sentences and of the first person. */
function withCapitals(before, words) {
  return (before + words)
    .replace(/([.!?]["”’)]*\s+["“‘(]*|^["“‘(]*)(\p{Ll})/gu, (_, end, letter) => end + letter.toUpperCase())
    .replace(/(?<![\p{L}'’])i(?!\p{L})/gu, "I")
    .slice(before.length);
}

function choose(index) {
  chosen = (index + NUM_OPTIONS) % NUM_OPTIONS;
  [...list.children].forEach((item, place) => item.setAttribute("aria-selected", place === chosen));
  text.setAttribute("aria-activedescendant", `option-${chosen}`);
}

function take(index) {
  const before = text.value.slice(0, caret), after = text.value.slice(caret);
  let words = withCapitals(before, options[index]);
  if (!words.trim()) return;
  if (/\s$/.test(before)) words = words.trimStart();
  if (/^\S/.test(after)) words = `${words} `;
  close();
  text.focus();
  text.setSelectionRange(caret, caret);
  // So that the browser's own undo knows of it.
  if (!document.execCommand("insertText", false, words)) text.setRangeText(words, caret, caret, "end");
  changed();
  say("");
}

function close() {
  request?.abort();
  request = null;
  popup.hidden = true;
  options = [];
  text.removeAttribute("aria-activedescendant");
}

// How surprising each word is

let words = []; // {start, end, nats}: where a word is, and minus the logarithm of its probability
let scored = ""; // the text that they are of
let summary = "";
let timer = 0;
let scoring = null;

function colourSoon() {
  clearTimeout(timer);
  scoring?.abort();
  if ($("surprise").checked) timer = setTimeout(() => trying(colour), PAUSE);
}

async function colour() {
  const prompt = text.value;
  if (!prompt.trim()) return;
  scoring = new AbortController();
  const wish = { echo: true, max_tokens: 0, logprobs: 0, truncate_prompt_tokens: contextLength };
  const answer = await (await ask("/v1/completions", { prompt, ...wish }, scoring.signal)).json();
  const { token_logprobs: scores, text_offset: offsets } = answer.choices[0].logprobs;
  words = [...prompt.matchAll(/\S+/g)].map((word) => {
    const [start, end] = [word.index, word.index + word[0].length];
    const inside = scores.filter((_, place) => offsets[place] >= start && offsets[place] < end);
    const isKnown = inside.length > 0 && !inside.includes(null);
    return { start, end, nats: isKnown ? -inside.reduce((sum, score) => sum + score, 0) : null };
  });
  const known = scores.filter((score) => score !== null);
  const perplexity = Math.exp(-known.reduce((sum, score) => sum + score, 0) / known.length);
  summary = known.length ? `Perplexity ${perplexity.toPrecision(3)} over ${known.length} tokens.` : "";
  scored = prompt;
  draw();
}

/** The colour of a word: one shade for each power of ten below one in ten. */
const heat = (nats) => Math.min(5, Math.floor(nats / Math.log(10)));

function draw() {
  const value = text.value;
  let same = 0; // what was not changed since keeps its colours
  while (same < value.length && value[same] === scored[same]) same++;
  const shown = $("surprise").checked ? words.filter((word) => word.end <= same && word.nats !== null) : [];
  const parts = [];
  let end = 0;
  const put = (until) => {
    if (caret >= end && caret < until) {
      parts.push(value.slice(end, caret), mark());
      end = caret;
    }
    parts.push(value.slice(end, until));
    end = until;
  };
  for (const word of shown) {
    put(word.start);
    const span = document.createElement("span");
    if (heat(word.nats)) span.className = `heat-${heat(word.nats)}`;
    span.textContent = value.slice(word.start, word.end);
    if (caret > word.start && caret < word.end) parts.push(mark());
    parts.push(span);
    end = word.end;
  }
  put(value.length);
  if (caret >= value.length) parts.push(mark());
  mirror.replaceChildren(...parts, "\n");
  text.style.height = "auto";
  text.style.height = `${text.scrollHeight}px`;
  describe();
}

function mark() {
  const span = document.createElement("span");
  span.className = "caret";
  span.textContent = "\u200b";
  return span;
}

/** What the model thought of the word at the caret, in words, because a colour is not for everybody. */
function describe() {
  $("legend").hidden = !$("surprise").checked;
  const at = text.selectionStart;
  const word = words.find(({ start, end, nats }) => start <= at && at <= end && nats !== null);
  const isFresh = $("surprise").checked && text.value === scored;
  if (!isFresh) $("detail").textContent = "";
  else if (!word) $("detail").textContent = summary;
  else {
    const odds = Number(Math.exp(word.nats).toPrecision(2)).toLocaleString("en");
    const name = text.value.slice(word.start, word.end);
    $("detail").textContent = `“${name}” had a probability of 1 in ${odds} here. ${summary}`;
  }
}

// The text

function changed() {
  caret = text.selectionEnd;
  keep(localStorage, "text", text.value);
  draw();
  colourSoon();
}

text.addEventListener("input", () => {
  tabLeaves = false;
  close();
  changed();
});

text.addEventListener("keydown", (event) => {
  if (event.isComposing || event.ctrlKey || event.metaKey || event.altKey) return;
  const actions = {
    Escape: () => { close(); say(""); tabLeaves = true; },
    ArrowDown: isOpen() && (() => choose(chosen + 1)),
    ArrowUp: isOpen() && (() => choose(chosen - 1)),
    Enter: isOpen() && !event.shiftKey && (() => take(chosen)),
    Tab: !event.shiftKey && !tabLeaves && (() => trying(proposeContinuations)),
  };
  if (actions[event.key]) {
    event.preventDefault();
    actions[event.key]();
  }
});

document.addEventListener("selectionchange", () => {
  if (document.activeElement !== text) return;
  if (isOpen() && text.selectionEnd !== caret) close();
  describe();
});
text.addEventListener("blur", () => { tabLeaves = false; });
document.addEventListener("pointerdown", (event) => { if (isOpen() && !popup.contains(event.target)) close(); });

// Buttons and knobs

function onClick(id, action) {
  $(id).addEventListener("pointerdown", (event) => event.preventDefault()); // the text keeps the focus
  $(id).addEventListener("click", action);
}

onClick("continue", () => { text.focus(); trying(proposeContinuations); });
for (const command of ["undo", "redo"]) {
  onClick(command, () => { close(); text.focus(); document.execCommand(command); });
}
onClick("copy", async () => {
  try {
    await navigator.clipboard.writeText(text.value);
  } catch { // not over plain http from another machine
    text.select();
    document.execCommand("copy");
  }
  say("Copied.");
});

for (const knob of knobs) {
  const stored = recall(localStorage, knob.id);
  if (stored) knob.value = stored;
  const output = document.querySelector(`output[for="${knob.id}"]`);
  const show = () => { output.value = knob.value; keep(localStorage, knob.id, knob.value); };
  knob.addEventListener("input", show);
  show();
}

$("surprise").checked = recall(localStorage, "surprise") === "true";
$("surprise").addEventListener("change", () => {
  keep(localStorage, "surprise", String($("surprise").checked));
  draw();
  if ($("surprise").checked) trying(colour);
});

$("login").addEventListener("submit", (event) => {
  event.preventDefault();
  keep(sessionStorage, "token", $("token").value);
  $("login").hidden = true;
  say("");
  trying(start);
});

// What is kept between visits; a browser may forbid it

function keep(storage, name, value) {
  try { storage.setItem(`gpt-${name}`, value); } catch { /* then it is not kept */ }
}

function recall(storage, name) {
  try { return storage.getItem(`gpt-${name}`); } catch { return null; }
}

async function start() {
  const [model] = (await (await ask("/v1/models")).json()).data;
  contextLength = model.max_model_len;
  $("model").textContent = model.id;
  document.title = `Write with ${model.id}`;
  $("length").max = Math.min(100, Math.floor(contextLength / 2));
  $("length").dispatchEvent(new Event("input"));
  if (text.value) changed();
}

text.value = recall(localStorage, "text") ?? "";
window.addEventListener("resize", draw);
draw();
trying(start);
