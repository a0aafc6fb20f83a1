// transformers.js in a headless Chromium that can reach this process and nothing else.

import { createReadStream, statSync } from "node:fs";
import { createServer } from "node:http";
import { basename, dirname, extname, join, normalize } from "node:path";
import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";
import { serve } from "./serve.mjs";

const LIMIT_SECONDS = 240;
const HERE = dirname(fileURLToPath(import.meta.url));
const PACKAGES = join(HERE, "node_modules");
const PAGE = "<!doctype html><meta charset=utf-8><link rel=icon href='data:,'><title>transformers.js</title>";
const TYPES = { ".js": "text/javascript", ".mjs": "text/javascript", ".json": "application/json", ".wasm": "application/wasm" };
const ARGUMENTS = [
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
];

await serve(async (request) => {
  const served = {
    "/transformers/": join(PACKAGES, "@huggingface/transformers/dist"),
    "/onnxruntime/": join(PACKAGES, "onnxruntime-web/dist"),
    "/worker/": HERE,
    "/models/": dirname(request.folder),
  };
  const server = await listen(served);
  const browser = await chromium.launch({ executablePath: request.browser, args: ARGUMENTS });
  const late = setTimeout(() => browser.close(), LIMIT_SECONDS * 1000);
  try {
    const requests = [];
    const page = await browser.newPage();
    page.context().on("request", (made) => requests.push(made.url()));
    page.on("console", (message) => console.error(message.text()));
    const origin = `http://127.0.0.1:${server.address().port}`;
    await page.goto(origin);
    const reply = await page.evaluate(ask, { ...request, name: basename(request.folder) });
    return { ...reply, requests, origin };
  } finally {
    clearTimeout(late);
    await browser.close();
    server.close();
  }
});

/** Runs in the page. */
async function ask(request) {
  const transformers = await import("/transformers/transformers.min.js");
  const { questions } = await import("/worker/transformers_js.mjs");
  const { reply } = await import("/worker/reply.mjs");
  const { env } = transformers;
  env.allowRemoteModels = false;
  env.allowLocalModels = true;
  env.localModelPath = "/models/";
  env.backends.onnx.wasm.wasmPaths = "/onnxruntime/"; // by default they come from a CDN
  return reply(questions(transformers, request));
}

/** A server of these folders, for this machine alone; the page may use threads. */
function listen(served) {
  const server = createServer((request, response) => {
    const path = normalize(decodeURIComponent(new URL(request.url, "http://127.0.0.1").pathname));
    const prefix = Object.keys(served).find((start) => path.startsWith(start));
    const file = prefix && join(served[prefix], path.slice(prefix.length));
    const stat = file && statSync(file, { throwIfNoEntry: false });
    const headers = { "Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp" };
    if (path === "/") {
      response.writeHead(200, { ...headers, "Content-Type": "text/html" }).end(PAGE);
    } else if (!stat?.isFile()) {
      response.writeHead(404, headers).end();
    } else {
      const type = TYPES[extname(file)] ?? "application/octet-stream";
      response.writeHead(200, { ...headers, "Content-Type": type, "Content-Length": stat.size });
      request.method === "HEAD" ? response.end() : createReadStream(file).pipe(response);
    }
  });
  return new Promise((resolve) => server.listen(0, "127.0.0.1", () => resolve(server)));
}
