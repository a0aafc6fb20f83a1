"""optimum-onnx: transformers' loop over a graph in ONNX Runtime."""

from pathlib import PurePosixPath

from hugging_face import generator
from optimum.onnxruntime import ORTModelForCausalLM
from protocol import Answers, Prompts, Request, serve, usual
from transformers import AutoTokenizer, pipeline


def answers(request: Request) -> Answers:
    file = PurePosixPath(request["model"])
    named = {} if request["precision"] == "fp32" else {"subfolder": str(file.parent), "file_name": file.name}
    model = ORTModelForCausalLM.from_pretrained(request["folder"], **named)
    bound = ORTModelForCausalLM.from_pretrained(request["folder"], use_io_binding=True, **named)
    tokenizer = AutoTokenizer.from_pretrained(request["folder"])
    new_tokens = request["new_tokens"]

    def piped() -> Prompts:
        texts = pipeline("text-generation", model=model, tokenizer=tokenizer)
        done = texts(
            request["texts"]["batch"], batch_size=3, max_new_tokens=new_tokens, do_sample=False, return_tensors=True
        )
        return [row[0]["generated_token_ids"][-new_tokens:] for row in done]

    with_binding = usual(request, generator(bound, tokenizer, new_tokens))
    return {
        **usual(request, generator(model, tokenizer, new_tokens)),
        "pipeline": piped,
        **{f"{what}, io binding": answer for what, answer in with_binding.items()},
    }


if __name__ == "__main__":
    serve(answers)
