// The page that tries the model. It talks to its own server's API and to nobody else.

const ALTERNATIVES = 5; // beside each token
const $ = (id) => document.getElementById(id);
const SETTINGS = ["temperature", "top_p", "top_k", "max_tokens", "seed"];

let key = ""; // kept nowhere else
let running = null; // aborts the request that runs
let selected = null;

async function ask(path, body, signal) {
  const headers = { ...(key && { authorization: `Bearer ${key}` }), ...(body && { "content-type": "application/json" }) };
  const response = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal });
  if (response.ok) return response;
  const told = await response.json().catch(() => null);
  throw Object.assign(new Error(told?.error?.message ?? response.statusText), { status: response.status });
}

// --- the model ------------------------------------------------------------------------------------------------------

async function begin() {
  try {
    const { data } = await (await ask("v1/models")).json();
    introduce(data[0]);
  } catch (error) {
    if (error.status !== 401) throw error;
    $("key-form").hidden = false;
    $("about").textContent = key ? "That was not the key." : "";
    $("key").focus();
  }
}

function introduce(model) {
  $("key-form").hidden = true;
  $("name").textContent = document.title = model.id;
  const millions = (model.parameters / 1e6).toFixed(1);
  $("about").textContent = `GPT-2 with ${millions} million parameters, ${model.precision}, ${model.max_model_len} positions`;
  prove(model.certificate);
  const continues = model.max_tokens > 0;
  $("form").hidden = !continues;
  if (!continues) {
    const path = model.head === "base" ? "/v1/embeddings" : "/v1/classify";
    $("about").textContent += `. Its head is ${model.head}: ask it at ${path}.`;
    return;
  }
  $("max_tokens").max = model.max_tokens;
  $("max_tokens").value = Math.min($("max_tokens").value, model.max_tokens);
  $("prompt").focus();
}

function prove(certificate) {
  $("proof").hidden = false;
  $("proof").classList.toggle("verified", certificate.verified);
  $("verdict").textContent = certificate.verified ? "Proven" : "Not proven";
  $("sentence").textContent = certificate.sentence;
  const figures = certificate.figures;
  const rows = {
    "checked on": certificate.date,
    level: certificate.level,
    "mean KL from float64": figures && `${figures.kl_mean.toExponential(1)} nats`,
    "same likeliest token": figures && `${(100 * figures.top_1).toFixed(1)} %`,
    "perplexity ÷ float64's": figures && figures.perplexity_ratio.toFixed(5),
  };
  for (const [name, value] of Object.entries(rows)) {
    if (!value) continue;
    const row = document.createElement("div");
    row.append(element("dt", name), element("dd", value));
    $("figures").append(row);
  }
}

// --- the text -------------------------------------------------------------------------------------------------------

async function generate() {
  const prompt = $("prompt").value;
  const set = SETTINGS.filter((name) => $(name).value !== "").map((name) => [name, Number($(name).value)]);
  const body = { prompt, ...Object.fromEntries(set), stream: true, logprobs: ALTERNATIVES };
  const began = performance.now();
  running = new AbortController();
  show(prompt);
  let count = 0;
  try {
    const response = await ask("v1/completions", body, running.signal);
    for await (const event of events(response.body)) {
      if (event.error) throw new Error(event.error.message);
      count += add(event.choices[0]);
      $("status").textContent = `${count} tokens`;
    }
    const seconds = (performance.now() - began) / 1000;
    $("status").textContent = `${count} tokens in ${seconds.toFixed(1)} s, ${(count / seconds).toFixed(0)} a second`;
  } catch (error) {
    const cancelled = error.name === "AbortError";
    $("status").textContent = cancelled ? `Cancelled after ${count} tokens` : error.message;
  } finally {
    running = null;
    buttons();
  }
}

async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  while (true) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const parts = text.split("\n\n");
    text = parts.pop();
    for (const part of parts) {
      const data = part.slice("data: ".length);
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

function show(prompt) {
  selected = null;
  held.length = 0;
  $("result").hidden = false;
  $("detail").hidden = true;
  $("text").replaceChildren(element("span", prompt, "prompt"));
  $("status").textContent = "Waiting";
  buttons();
}

const held = []; // tokens that complete no text yet: parts of a character

function add(choice) {
  const { tokens, token_logprobs, top_logprobs } = choice.logprobs;
  held.push(...tokens.map((name, i) => ({ name, logprob: token_logprobs[i], best: top_logprobs[i] })));
  if (choice.text || choice.finish_reason) {
    const ended = choice.text ? "" : choice.finish_reason === "stop" ? " ⏹" : "";
    const span = element("span", choice.text || ended, choice.text ? "token" : "token ended");
    span.tokens = held.splice(0);
    span.id = `token-${$("text").childElementCount}`;
    span.setAttribute("role", "option");
    span.setAttribute("aria-label", span.tokens.map(told).join(", "));
    span.style.setProperty("--p", Math.exp(Math.min(...span.tokens.map((token) => token.logprob))));
    $("text").append(span);
  }
  return tokens.length;
}

const told = (token) => `${visible(token.name)} ${percent(Math.exp(token.logprob))}`;

function select(span) {
  if (!span || span === selected) return;
  selected?.setAttribute("aria-selected", "false");
  selected = span;
  span.setAttribute("aria-selected", "true");
  $("text").setAttribute("aria-activedescendant", span.id);
  const [token] = span.tokens.slice(-1);
  $("token").textContent = span.tokens.map(told).join("  ");
  const rows = Object.entries(token.best).map(([name, value]) => bar(name, value, name === token.name));
  if (!(token.name in token.best)) rows.push(bar(token.name, token.logprob, true));
  $("best").replaceChildren(...rows);
  $("detail").hidden = false;
}

function bar(name, logprob, chosen) {
  const row = element("li", "", chosen ? "chosen" : "");
  const length = element("span", "", "bar");
  length.style.setProperty("--p", Math.exp(logprob));
  row.append(element("span", visible(name), "word"), length, element("span", percent(Math.exp(logprob)), "number"));
  return row;
}

const percent = (p) => (p >= 0.0005 ? `${(100 * p).toFixed(1)} %` : "< 0.1 %");
const visible = (name) => name.replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll(" ", "␣") || "∅";

function element(tag, text, kind = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  made.className = kind;
  return made;
}

function buttons() {
  $("go").disabled = running !== null;
  $("cancel").disabled = running === null;
}

// --- hands ----------------------------------------------------------------------------------------------------------

const tokenAt = (event) => event.target.closest?.(".token");
for (const kind of ["pointerover", "click"]) $("text").addEventListener(kind, (event) => select(tokenAt(event)));

$("text").addEventListener("focus", () => select(selected ?? $("text").querySelector(".token")));
$("text").addEventListener("keydown", (event) => {
  const all = [...$("text").querySelectorAll(".token")];
  const at = all.indexOf(selected);
  const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: all.length - 1 }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  select(all[to]);
  all[to]?.scrollIntoView({ block: "nearest" });
});

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!running) generate();
});
$("cancel").addEventListener("click", () => running?.abort());
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("form").requestSubmit();
});
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key = $("key").value;
  begin();
});

begin().catch((error) => ($("about").textContent = error.message));
