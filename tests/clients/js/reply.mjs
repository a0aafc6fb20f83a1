// A reply as ../workers/protocol.py has it: for each thing that was asked its `tokens` or an `error`, or an `error` for all.

/** @param questions a promise of a function for each thing that is asked. */
export async function reply(questions) {
  try {
    const answers = {};
    for (const [what, answer] of Object.entries(await questions)) {
      answers[what] = await answer().then((tokens) => ({ tokens }), failure);
    }
    return answers;
  } catch (error) {
    return failure(error);
  }
}

/** What an error says first. */
function failure(error) {
  console.error(error);
  return { error: (error?.message ?? String(error)).split("\n")[0].slice(0, 200) };
}
