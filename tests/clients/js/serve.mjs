// A worker: one JSON object comes in, one goes out.

import { readFileSync } from "node:fs";

/** Answer the one request with what `answer(request)` promises. */
export async function serve(answer) {
  for (const name of ["debug", "info", "log", "warn"]) {
    console[name] = console.error; // what libraries print goes where their errors go
  }
  const request = JSON.parse(readFileSync(0, "utf8"));
  process.stdout.write(`${ascii(JSON.stringify(await answer(request)))}\n`);
}

/** JSON in which nothing is taken for the end of a line. */
function ascii(json) {
  return json.replace(/[^\x00-\x7f]/g, (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`);
}
