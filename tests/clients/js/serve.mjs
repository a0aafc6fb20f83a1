// A worker: one JSON object comes in, one goes out.

import { readFileSync } from "node:fs";

/** Answer the one request with what `answer(request)` promises. */
export async function serve(answer) {
  for (const name of ["debug", "info", "log", "warn"]) {
    console[name] = console.error; // what libraries print goes where their errors go
  }
  const request = JSON.parse(readFileSync(0, "utf8"));
  process.stdout.write(`${JSON.stringify(await answer(request))}\n`);
}
