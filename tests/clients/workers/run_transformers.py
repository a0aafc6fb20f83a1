"""transformers, which opens the folder for its weights and computes them itself."""

import torch
from hugging_face import generator
from protocol import Answers, Request, serve, usual
from transformers import AutoModelForCausalLM, AutoTokenizer


def answers(request: Request) -> Answers:
    model, loading = AutoModelForCausalLM.from_pretrained(
        request["folder"], dtype=torch.float32, output_loading_info=True
    )
    strange = {name: found for name, found in loading.items() if found}
    if strange:
        raise ValueError(f"weights that do not fit: {strange}")
    tokenizer = AutoTokenizer.from_pretrained(request["folder"])
    return usual(request, generator(model, tokenizer, request["new_tokens"]))


if __name__ == "__main__":
    serve(answers)
