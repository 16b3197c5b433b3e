"""One measurement of PEFT in a process of its own: python peft_child.py JSON (PeftRequest of peft.ts).

Prints one line of JSON: the seconds of each step and the versions. The model is a LlamaForCausalLM of random weights,
its experts are LoRA pairs on all linears. "train": forward, backward, clipping and AdamW over one batch; of the expert
alone, or of the classifier of an X-LoRA over frozen experts. "decode": one token after a prompt; X-LoRA refuses a cache
of keys, so that its step reads the prompt anew.
"""

import json
import sys
import tempfile
import time

import peft
import torch
import transformers

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def make_base(request):
    config = transformers.LlamaConfig(**request["config"])
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[request["weights"]]
    return transformers.LlamaForCausalLM(config).to(dtype)


def make_expert(request):
    lora = peft.LoraConfig(
        r=request["rank"], lora_alpha=request["rank"], target_modules=LINEARS, init_lora_weights=False
    )
    return peft.get_peft_model(make_base(request), lora)


def make_xlora(request):
    base = make_base(request)
    base.config.use_cache = False
    with tempfile.TemporaryDirectory() as folder:
        make_expert(request).save_pretrained(folder)
        xlora = peft.XLoraConfig(
            hidden_size=base.config.hidden_size,
            adapters={str(i): folder for i in range(request["experts"])},
            layerwise_scalings=True,
        )
        return peft.get_peft_model(base, xlora)


MODELS = {"base": make_base, "expert": make_expert, "router": make_xlora}


def random_ids(request, length):
    return torch.randint(request["config"]["vocab_size"], (request["batch"], length))


def train_step(request, model):
    trained = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, weight_decay=0)
    ids = random_ids(request, request["context"])
    labels = ids.clone()
    labels[:, : max(1, request["context"] // 4)] = -100
    model.train()

    def step():
        model(input_ids=ids, labels=labels, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def decode_step(request, model):
    ids = random_ids(request, request["context"] + 1)
    model.eval()
    if request["model"] == "router":
        return lambda: model(input_ids=ids, use_cache=False, logits_to_keep=1).logits.argmax(-1)
    cache = model(input_ids=ids[:, :-1], use_cache=True, logits_to_keep=1).past_key_values

    def step():
        model(input_ids=ids[:, -1:], past_key_values=cache, use_cache=True).logits.argmax(-1)
        cache.crop(-1)

    return step


def seconds_of(step, steps):
    """Of each step, after one that is not counted."""
    step()
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return seconds


def main():
    request = json.loads(sys.argv[1])
    torch.manual_seed(1)
    torch.set_num_threads(request["threads"])
    model = MODELS[request["model"]](request)
    make_step = {"train": train_step, "decode": decode_step}[request["kind"]]
    with torch.inference_mode(request["kind"] == "decode"):
        seconds = seconds_of(make_step(request, model), request["steps"])
    versions = {module.__name__: module.__version__ for module in (torch, transformers, peft)}
    print(json.dumps({"seconds": seconds, "versions": versions}))


main()
