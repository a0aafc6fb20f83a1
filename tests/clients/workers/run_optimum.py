"""optimum-onnx: transformers' loop over a graph in ONNX Runtime."""

from pathlib import PurePosixPath

from optimum.onnxruntime import ORTModelForCausalLM
from protocol import Answers, Prompts, Request, serve, usual
from transformers import AutoTokenizer, pipeline


def answers(request: Request) -> Answers:
    file = PurePosixPath(request["model"])
    named = {} if request["precision"] == "fp32" else {"subfolder": str(file.parent), "file_name": file.name}
    model = ORTModelForCausalLM.from_pretrained(request["folder"], **named)
    tokenizer = AutoTokenizer.from_pretrained(request["folder"])
    new_tokens = request["new_tokens"]

    def generate(prompts: Prompts, beams: int) -> Prompts:
        padded = tokenizer.pad({"input_ids": prompts}, return_tensors="pt")
        done = model.generate(**padded, max_new_tokens=new_tokens, num_beams=beams, do_sample=False)
        return done[:, padded["input_ids"].shape[1] :].tolist()

    def piped() -> Prompts:
        texts = pipeline("text-generation", model=model, tokenizer=tokenizer)
        done = texts(
            request["texts"]["batch"], batch_size=3, max_new_tokens=new_tokens, do_sample=False, return_tensors=True
        )
        return [row[0]["generated_token_ids"][-new_tokens:] for row in done]

    return {**usual(request, generate), "pipeline": piped}


if __name__ == "__main__":
    serve(answers)
