// The page that tries the model. It talks to its own server's API and to nobody else. What a model writes becomes text
// nodes, never markup.

const ALTERNATIVES = 5; // beside each token
const RAREST_BITS = 10; // of surprise: one in a thousand has the full colour
const SEEDS = 2 ** 32; // short enough to be typed again

const $ = (id) => document.getElementById(id);
const text = $("text");

let key = ""; // kept nowhere else
let running = null; // aborts the request that runs
let selected = null; // the token whose alternatives were shown last

function element(tag, content = "", kind = "") {
  const made = document.createElement(tag);
  made.textContent = content;
  made.className = kind;
  return made;
}

// --- the server -----------------------------------------------------------------------------------------------------

async function ask(path, body, signal) {
  const headers = { ...(key && { authorization: `Bearer ${key}` }), ...(body && { "content-type": "application/json" }) };
  const request = { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal };
  const response = await fetch(path, request).catch(lost("The server does not answer."));
  if (response.ok) return response;
  const told = await response.json().catch(() => null);
  const message = told?.error?.message ?? `${response.status} ${response.statusText}`;
  throw Object.assign(refused(message), { status: response.status });
}

const refused = (message) => new Error(`The server says: ${message}${/[.?!]$/.test(message) ? "" : "."}`);

/** Return what throws a sentence in place of what the browser says; that a run was cancelled it leaves as it is. */
const lost = (sentence) => (error) => {
  throw error?.name === "AbortError" ? error : new Error(sentence);
};

/** Yield the JSON of server-sent events, until the one that says [DONE]. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  const broken = lost("The connection broke before the text was complete.");
  let rest = "";
  while (true) {
    const { value, done } = await reader.read().catch(broken);
    if (done) broken();
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      if (!part.startsWith("data: ")) continue; // a comment, which keeps a connection open
      const data = part.slice("data: ".length);
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

// --- the model ------------------------------------------------------------------------------------------------------

async function begin() {
  try {
    const { data } = await (await ask("v1/models")).json();
    introduce(data[0]);
  } catch (error) {
    if (error.status !== 401) throw error;
    $("key-form").hidden = false;
    $("key-status").textContent = key && "That was not the key.";
    $("key").focus();
  }
}

function introduce(model) {
  $("key-form").hidden = true;
  $("name").textContent = model.id;
  document.title = `${model.id} – gpt2onnx serve`;
  const millions = (model.parameters / 1e6).toFixed(1);
  $("about").textContent = `GPT-2, ${millions} million parameters, ${model.precision}, ${model.max_model_len} positions`;
  prove(model.certificate);
  const continues = model.max_tokens > 0;
  $("form").hidden = !continues;
  if (!continues) {
    const path = model.head === "base" ? "/v1/embeddings" : "/v1/classify";
    $("about").textContent += `. Its head is ${model.head} and continues no text: ask it at ${path}.`;
    return;
  }
  $("max_tokens").max = model.max_tokens;
  $("max_tokens").value = Math.min($("max_tokens").value, model.max_tokens);
  $("prompt").focus();
}

function prove({ verified, sentence, date, level, figures }) {
  $("badge").textContent = verified ? "✓ PROVEN" : "✗ NOT PROVEN";
  $("badge").classList.toggle("good", verified);
  $("sentence").textContent = sentence;
  const rows = {
    "checked on": date,
    level,
    "mean KL from float64": figures && `${figures.kl_mean.toExponential(1)} nats`,
    "same likeliest token": figures && `${(100 * figures.top_1).toFixed(1)} %`,
    "perplexity ÷ float64’s": figures && figures.perplexity_ratio.toFixed(5),
  };
  for (const [name, value] of Object.entries(rows)) {
    if (!value) continue;
    const row = element("div");
    row.append(element("dt", name), element("dd", value));
    $("figures").append(row);
  }
  $("proof").hidden = $("badge").hidden = false;
}

// --- a run ----------------------------------------------------------------------------------------------------------

function asked() {
  const body = { prompt: $("prompt").value, stream: true, logprobs: ALTERNATIVES };
  for (const name of ["temperature", "top_p", "top_k", "max_tokens", "seed"]) {
    if ($(name).value !== "") body[name] = $(name).valueAsNumber;
  }
  body.seed ??= crypto.getRandomValues(new Uint32Array(1))[0] % SEEDS;
  return body;
}

async function generate() {
  const body = asked();
  const clock = { began: performance.now(), first: null, last: null, count: 0 };
  running = new AbortController();
  open(body.prompt);
  try {
    const response = await ask("v1/completions", body, running.signal);
    for await (const event of events(response.body)) {
      if (event.error) throw refused(event.error.message);
      clock.count += add(event.choices[0]);
      clock.last = performance.now();
      clock.first ??= clock.last;
      tell(`${counted(clock.count)} so far`);
    }
    tell(paced(clock, body));
  } catch (error) {
    if (error.name === "AbortError") tell(`Cancelled after ${counted(clock.count)}.`);
    else tell(error.message, true);
  } finally {
    running = null;
    close();
  }
}

function open(prompt) {
  choose(null);
  held.length = 0;
  text.replaceChildren(element("span", prompt, "prompt"));
  $("said").textContent = "";
  $("result").hidden = false;
  busy(true);
  tell("Waiting for the first token");
  $("result").scrollIntoView({ block: "nearest" });
}

function close() {
  busy(false);
  $("said").textContent = [...text.querySelectorAll(".token")].map((span) => span.textContent).join("");
}

/** What changes with each token is read aloud once it rests. The focus does not get lost with its button. */
function busy(is) {
  for (const each of [text, $("status")]) each.setAttribute("aria-busy", is);
  const [off, on] = is ? [$("go"), $("cancel")] : [$("cancel"), $("go")];
  const moves = document.activeElement === off;
  off.disabled = true;
  on.disabled = false;
  if (moves) on.focus({ preventScroll: true });
}

function tell(message, wrong = false) {
  $("status").textContent = message;
  $("status").classList.toggle("error", wrong);
}

const counted = (count) => `${count} ${count === 1 ? "token" : "tokens"}`;
const lasted = (ms) => (ms < 1000 ? `${ms.toFixed(0)} ms` : `${(ms / 1000).toFixed(1)} s`);

/** Tell how fast tokens came: the first one waits for the prompt, so that the rate is that of the others. */
function paced({ began, first, last, count }, { seed, temperature }) {
  const facts = [counted(count), `first after ${lasted(first - began)}`];
  if (last > first) facts.push(`${((1000 * (count - 1)) / (last - first)).toFixed(0)} tokens/s`);
  if (temperature !== 0) facts.push(`seed ${seed}`);
  return facts.join("\u00a0· ");
}

// --- the text -------------------------------------------------------------------------------------------------------

const held = []; // tokens that complete no text yet: parts of a character

/** Add what came; return how many tokens it was. */
function add({ text: piece, finish_reason: ended, logprobs: { tokens, token_logprobs, top_logprobs } }) {
  held.push(...tokens.map((name, i) => ({ name, logprob: token_logprobs[i], best: top_logprobs[i] })));
  if (piece || ended) {
    const span = written(piece);
    span.tokens = held.splice(0);
    if (!piece) mark(span, ended === "stop" ? "end of text" : "�");
    span.id = `token-${text.childElementCount}`;
    span.setAttribute("role", "option");
    span.setAttribute("aria-selected", false);
    span.setAttribute("aria-label", spoken(span.tokens));
    span.style.setProperty("--rare", rare(Math.min(...span.tokens.map((token) => token.logprob))));
    text.append(span);
  }
  return tokens.length;
}

/** Return a token's text. Each end of a line has a sign, which is no part of the text, so that one can point at it. */
function written(piece) {
  const span = element("span", "", "token");
  for (const part of piece.split(/(\n)/)) {
    if (part) span.append(part === "\n" ? element("span", part, "break") : part);
  }
  return span;
}

function mark(span, sign) {
  span.classList.add("mark");
  span.dataset.mark = sign;
}

const rare = (logprob) => Math.min(1, -logprob / Math.LN2 / RAREST_BITS).toFixed(3);
const percent = (logprob) => {
  const p = Math.exp(logprob);
  return p >= 0.0005 ? `${(100 * p).toFixed(1)} %` : "< 0.1 %";
};

const SIGNS = { " ": "␣", "\n": "↵", "\t": "⇥" };

/** Return the name of a token with signs for what cannot be seen. */
const visible = (name) =>
  name.replace(/[ \p{C}\p{Z}]/gu, (sign) => SIGNS[sign] ?? `\\u{${sign.codePointAt(0).toString(16)}}`) || "(nothing)";

function spoken(tokens) {
  const { name: chosen, best } = tokens.at(-1);
  const others = Object.entries(best).filter(([name]) => name !== chosen);
  const told = (name, logprob) => `${visible(name)} ${percent(logprob)}`;
  return [
    tokens.map(({ name, logprob }) => told(name, logprob)).join(", "),
    ...others.map(([name, logprob]) => told(name, logprob)),
  ].join("; or ");
}

// --- what might have come -------------------------------------------------------------------------------------------

/** Mark a token as the one that arrow keys go on from, and show what might have come in its place. */
function choose(span) {
  selected?.setAttribute("aria-selected", false);
  selected = span;
  $("detail").hidden = !span;
  if (!span) {
    text.removeAttribute("aria-activedescendant");
    return;
  }
  span.setAttribute("aria-selected", true);
  text.setAttribute("aria-activedescendant", span.id);
  explain(span.tokens);
  place(span);
}

function hide() {
  $("detail").hidden = true;
  selected?.setAttribute("aria-selected", false);
}

function explain(tokens) {
  const { name: chosen, logprob, best } = tokens.at(-1);
  $("token").hidden = tokens.length === 1;
  $("token").textContent = `The last of ${counted(tokens.length)} that make up a character`;
  const all = Object.entries({ ...best, [chosen]: best[chosen] ?? logprob });
  const rows = all.map(([name, value]) => bar(visible(name), value, name === chosen ? "chosen" : ""));
  const rest = 1 - all.reduce((sum, [, value]) => sum + Math.exp(value), 0);
  $("best").replaceChildren(...rows, bar("all others", Math.log(Math.max(rest, Number.MIN_VALUE)), "others"));
}

function bar(name, logprob, kind) {
  const row = element("li", "", kind);
  const track = element("span", "", "track");
  const length = element("span", "", "bar");
  length.style.width = `${100 * Math.exp(logprob)}%`;
  track.append(length);
  row.append(element("bdi", name, kind === "others" ? "" : "word"), track, element("span", percent(logprob), "number"));
  return row;
}

const GAP = 6; // pixels between a token and what explains it
const boxOf = (span) => span.getClientRects()[0];

/** Put the explanation above its token, where neither a finger nor the way to the next line is; else below. */
function place(span) {
  const [box, home, detail] = [boxOf(span), $("result").getBoundingClientRect(), $("detail")];
  const above = box.top - GAP - detail.offsetHeight;
  const top = above >= 0 ? above : box.bottom + GAP;
  const left = Math.min(box.left, home.right - detail.offsetWidth);
  detail.style.top = `${top - home.top}px`;
  detail.style.left = `${Math.max(0, left - home.left)}px`;
}

/** Return the token to which an arrow key leads. */
function next(pressed, all, at) {
  if (pressed === "Home") return all[0];
  if (pressed === "End") return all.at(-1);
  if (pressed === "ArrowRight") return all[at + 1];
  if (pressed === "ArrowLeft") return all[Math.max(0, at - 1)];
  const down = pressed === "ArrowDown";
  if ((!down && pressed !== "ArrowUp") || at < 0) return undefined;
  const here = [...all[at].getClientRects()].at(down ? -1 : 0);
  const away = (box) => (down ? box.top - here.bottom : here.top - box.bottom) + here.height / 2; // 0 or less: same line
  const boxes = all.flatMap((span) => [...span.getClientRects()].map((box) => [span, box]));
  const distance = ([, box]) => 1e4 * Math.round(away(box)) + Math.abs(box.left - here.left);
  const others = boxes.filter(([span, box]) => span !== all[at] && away(box) > 0);
  return others.sort((a, b) => distance(a) - distance(b))[0]?.[0];
}

// --- hands ----------------------------------------------------------------------------------------------------------

const tokenAt = (event) => event.target.closest?.(".token");
const isMouse = (event) => event.pointerType === "mouse";

text.addEventListener("pointerover", (event) => {
  const span = isMouse(event) && tokenAt(event);
  if (span) choose(span);
});
text.addEventListener("click", (event) => choose(tokenAt(event) ?? null));
text.addEventListener("focus", () => {
  const span = selected ?? text.querySelector(".token");
  if (span && text.matches(":focus-visible")) choose(span);
});
text.addEventListener("blur", hide);
text.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const all = [...text.querySelectorAll(".token")];
  const span = next(event.key, all, all.indexOf(selected));
  if (!span) return;
  event.preventDefault();
  span.scrollIntoView({ block: "nearest" });
  choose(span);
});
for (const each of [text, $("detail")]) {
  each.addEventListener("pointerleave", (event) => {
    const stays = document.activeElement === text || $("result").contains(event.relatedTarget?.closest?.("#text, #detail"));
    if (isMouse(event) && !stays) hide();
  });
}
document.addEventListener("pointerdown", (event) => {
  if (!event.target.closest("#text, #detail")) hide();
});
$("detail").addEventListener("click", hide);
addEventListener("resize", () => $("detail").hidden || place(selected));

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!running) generate();
});
$("cancel").addEventListener("click", () => running?.abort());
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") $("detail").hidden ? running?.abort() : hide(); // what is on top goes first
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !$("form").hidden) $("form").requestSubmit();
});
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key = $("key").value;
  begin().catch(fail);
});

for (const each of document.querySelectorAll(".scale i")) each.style.setProperty("--rare", rare(Math.log(each.dataset.p)));

const fail = (error) => {
  $("about").textContent = error.message;
  $("about").classList.add("error");
};
begin().catch(fail);
