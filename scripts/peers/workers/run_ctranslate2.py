"""Run CTranslate2: its C++ loop calls back at each token."""

import json
from pathlib import Path

import ctranslate2
from protocol import Generate, Prompts, Stopwatch, serve


def open_model(folder: Path, variant: str, threads: int) -> Generate:
    model = ctranslate2.Generator(str(folder), compute_type=variant, inter_threads=1, intra_threads=threads)
    words = json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))

    def generate(prompts: Prompts, new_tokens: int, watch: Stopwatch) -> Prompts:
        def called(step: ctranslate2.GenerationStepResult) -> bool:
            if step.batch_id == len(prompts) - 1:
                watch.token()
            return False

        done = model.generate_batch(
            [[words[i] for i in prompt] for prompt in prompts],
            max_length=new_tokens,
            min_length=new_tokens,  # so that all rows have the same length
            include_prompt_in_result=False,
            callback=called,
        )
        return [result.sequences_ids[0] for result in done]

    return generate


if __name__ == "__main__":
    serve(open_model, "ctranslate2")
