"""Records every request that one run of transformers makes of CUDA's caching allocator, from the process's first request on.

    python benchmarks/gpu/record.py MODEL OUT.xz WORKLOAD [option=value ...]

MODEL: catalog:NAME or a config.json. WORKLOAD: generate, padded (left padding in all rows but the first), image, forward, train,
or autocast (float32 parameters under torch.autocast(bfloat16), as Trainer's bf16=True trains). Options and their defaults are in
OPTIONS. Weights are random; the class is the first of the configuration's `architectures`.

OUT.xz is a file of benchmarks/recordings.py: stages with the allocator's figures and NVML's, every request and segment. What is
printed says how far off the predicted peaks are (predicted less recorded bytes; null where none are predicted for such a run).
Of a run that fails, what was recorded until then is written, and the error is printed. Without CUDA everything runs, and nothing
is written. To add a file to the recorded cards: benchmarks/recorded/README.md.

gemma-2-2b-it: configs.json of mondegreens/apron @45080b57; gpt-oss-20b: openai/gpt-oss-120b's with 24 layers and 32 experts.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from benchmarks.recordings import pack

OPTIONS: dict[str, Any] = {
    "context": 1024,
    "new": 8,
    "batch": 1,
    "layers": 0,  # 0: as many as the configuration has
    "attention": "sdpa",
    "dtype": "bfloat16",
    "load": "random",
    "optimizer": "foreach",
    "checkpointing": 0,
    "lora": 0,
    "accumulate": 1,
    "images": "",  # sides of the square images of each row, in pixels, such as 1024+512
    "cache": "",  # "static": as `generate` takes it by cache_implementation
    "beside": 0,  # bytes that another process holds meanwhile
}
LONGEST_HISTORY = 4_000_000
STEPS_TOGETHER = 32  # steps of decoding whose events are taken over at once
TOKEN = 1
FIGURES = (
    "allocated_bytes.all.current", "allocated_bytes.all.peak", "requested_bytes.all.peak",
    "reserved_bytes.all.current", "reserved_bytes.all.peak", "num_alloc_retries", "num_ooms",
)  # fmt: skip
LEFT_OUT = ("snapshot",)  # written by the reading itself
HOLDER = """
import sys, torch
size = int(sys.argv[1])
held = torch.empty(size, dtype=torch.uint8, device="cuda" if torch.cuda.is_available() else "meta")
print("ready", flush=True)
sys.stdin.read()
"""


class Recording:
    """The events so far, and what the allocator and the driver told at each stage."""

    def __init__(self) -> None:
        import torch

        self.cuda = torch.cuda.is_available()
        self.events: list[list[Any]] = []
        self.stages: list[list[Any]] = []
        if self.cuda:
            torch.cuda.init()
            self._listen()

    @staticmethod
    def _listen() -> None:
        import torch

        torch.cuda.memory._record_memory_history("all", context=None, max_entries=LONGEST_HISTORY)

    def take(self) -> None:
        """Takes over what torch has recorded since the last time, and lets it begin anew."""
        if not self.cuda:
            return
        import torch

        told = torch.cuda.memory._snapshot()["device_traces"][0]
        torch.cuda.memory._record_memory_history(None)
        for event in told:
            row = [event["action"], event.get("size"), event.get("addr"), event.get("stream")]
            if row[0] in LEFT_OUT:
                continue
            if row[0] == "free_completed" and self.events and self.events[-1] == ["free_requested", *row[1:]]:
                self.events.pop()
            self.events.append(row)
        self._listen()

    def stage(self, name: str) -> None:
        if not self.cuda:
            self.stages.append([name, 0, {}, None, None, None])
            return
        import torch

        from qwen_inspect.measuring.nvml import process_bytes

        torch.cuda.synchronize()
        self.take()
        stats = torch.cuda.memory_stats()
        told = {figure: stats.get(figure, 0) for figure in FIGURES}
        self.stages.append([name, len(self.events), told, *process_bytes(0), torch.cuda.mem_get_info()[0]])
        torch.cuda.reset_peak_memory_stats()

    def segments(self) -> list[list[Any]]:
        if not self.cuda:
            return []
        import torch

        names = "address", "total_size", "allocated_size", "segment_type", "stream"
        return [[segment[name] for name in names] for segment in torch.cuda.memory._snapshot()["segments"]]


def configuration(model: str, layers: int) -> dict[str, Any]:
    """What `transformers.AutoConfig.for_model` takes."""
    if model.startswith("catalog:"):
        from qwen_inspect import inspect

        found = dict(inspect(model).config or {})
    else:
        found = json.loads(Path(model).read_text())
    for name in ("auto_map", "quantization_config"):
        found.pop(name, None)
    if layers:
        text = found["text_config"] = dict(found["text_config"]) if "text_config" in found else {}
        text = text or found
        if text is found:
            del found["text_config"]
        text["num_hidden_layers"] = layers
        if text.get("layer_types"):
            text["layer_types"] = text["layer_types"][:layers]
    return found


def built(config: dict[str, Any], options: dict[str, Any], workload: str, device: str) -> Any:
    import torch
    import transformers

    known = transformers.AutoConfig.for_model(**json.loads(json.dumps(config)))
    model_class = getattr(transformers, config["architectures"][0])
    dtype = torch.float32 if workload == "autocast" else getattr(torch, options["dtype"])
    with torch.device(device):
        return model_class._from_config(known, dtype=dtype, attn_implementation=options["attention"])


def generate(model: Any, options: dict[str, Any], workload: str, device: str, recording: Recording) -> None:
    import torch

    model.eval()
    batch, tokens, new = options["batch"], options["context"], options["new"]
    prompt = torch.full((batch, tokens), TOKEN, dtype=torch.int64, device=device)
    given = {"attention_mask": torch.ones_like(prompt)}
    if workload == "padded":
        for row in range(1, batch):
            given["attention_mask"][row, : tokens // 4 * row // batch + 1] = 0
    if options["cache"]:
        given["cache_implementation"] = options["cache"]
    if workload == "image":
        given |= pictures(model.config, options, prompt)
    recording.stage("inputs")
    calls = 0

    def mark(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls in (1, 2, new):
            recording.stage(f"before call {calls}")
        elif calls % STEPS_TOGETHER == 0:
            recording.take()

    model.register_forward_pre_hook(mark)
    result = model.generate(
        prompt,
        max_new_tokens=new,
        min_new_tokens=new,
        do_sample=False,
        return_dict_in_generate=True,
        pad_token_id=0,
        eos_token_id=None,
        **given,
    )
    recording.stage("generated")
    del result


def pictures(config: Any, options: dict[str, Any], prompt: Any) -> dict[str, Any]:
    """Images of zeros, and their places at the front of each row, a token of text between two."""
    import torch

    vision, batch = config.vision_config, options["batch"]
    grids = [int(side) // vision.patch_size for side in options["images"].split("+")]
    kinds = torch.zeros_like(prompt)
    first = 0
    for grid in grids:
        last = first + (grid // vision.spatial_merge_size) ** 2
        kinds[:, first:last] = 1
        first = last + 1
    prompt[kinds == 1] = config.image_token_id
    patches = batch * sum(grid * grid for grid in grids)
    values = 3 * getattr(vision, "temporal_patch_size", 2) * vision.patch_size**2
    dtype = getattr(torch, options["dtype"])
    return {
        "pixel_values": torch.zeros(patches, values, dtype=dtype, device=prompt.device),
        "image_grid_thw": torch.tensor([[1, grid, grid] for grid in grids] * batch, device=prompt.device),
        "mm_token_type_ids": kinds,
    }


def forward(model: Any, options: dict[str, Any], workload: str, device: str, recording: Recording) -> None:
    import torch

    model.eval()
    prompt = torch.full((options["batch"], options["context"]), TOKEN, dtype=torch.int64, device=device)
    with torch.no_grad():
        result = model(input_ids=prompt)
    recording.stage("forwarded")
    del result


def train(model: Any, options: dict[str, Any], workload: str, device: str, recording: Recording) -> None:
    import torch

    if options["lora"]:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=options["lora"], target_modules="all-linear", task_type="CAUSAL_LM"))
        recording.stage("adapted")
    if options["checkpointing"]:
        if options["lora"]:
            model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if options["optimizer"] == "sgd":
        optimizer: Any = torch.optim.SGD(trained, lr=1e-5)
    else:
        ways = {"foreach": {"foreach": True}, "fused": {"fused": True}, "for_loop": {"foreach": False}}
        optimizer = torch.optim.AdamW(trained, lr=1e-5, **ways[options["optimizer"]])
    for step in range(3):
        for micro in range(options["accumulate"]):
            prompt = torch.full((options["batch"], options["context"]), TOKEN, dtype=torch.int64, device=device)
            labels = torch.ones_like(prompt)
            with torch.autocast(device, dtype=torch.bfloat16, enabled=workload == "autocast"):
                loss = model(input_ids=prompt, labels=labels, use_cache=False).loss
            if options["accumulate"] > 1:
                loss = loss / options["accumulate"]
            recording.stage(f"forward {step}.{micro}")
            loss.backward()
            loss = loss.detach()
            recording.stage(f"backward {step}.{micro}")
        optimizer.step()
        recording.stage(f"optimizer {step}")
        optimizer.zero_grad()
        recording.stage(f"zeroed {step}")


WORKLOADS: dict[str, Callable[..., None]] = {
    "generate": generate, "padded": generate, "image": generate, "forward": forward, "train": train, "autocast": train,
}  # fmt: skip


def run(model: str, workload: str, options: dict[str, Any], recording: Recording) -> None:
    import torch

    device = "cuda" if recording.cuda else "cpu"
    recording.stage("start")
    if options["beside"]:
        assert holder is not None
        assert holder.stdout is not None
        holder.stdout.readline()
        recording.stage("beside")
    made = built(configuration(model, options["layers"]), options, workload, device)
    gc.collect()
    recording.stage("loaded")
    if recording.cuda:
        torch.cuda.empty_cache()
    recording.stage("emptied")
    WORKLOADS[workload](made, options, workload, device, recording)


def workspaces(recording: Recording) -> int | None:
    if not recording.cuda:
        return None
    import torch

    torch.cuda.memory._record_memory_history(None)
    before = torch.cuda.memory_allocated()
    torch._C._cuda_clearCublasWorkspaces()
    return int(before - torch.cuda.memory_allocated())


def main() -> int:
    global holder
    model, out, workload, *pairs = sys.argv[1:]
    options = dict(OPTIONS)
    for name, _, value in (pair.partition("=") for pair in pairs):
        options[name] = int(value) if isinstance(OPTIONS[name], int) else value
    if options["beside"]:
        command = [sys.executable, "-c", HOLDER, str(options["beside"])]
        holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    began = time.perf_counter()
    import torch
    import transformers

    recording = Recording()
    failed = None
    try:
        run(model, workload, options, recording)
    except Exception:  # whatever a library says belongs to the result
        failed = traceback.format_exc()[-4000:]
        recording.take()
    finally:
        if holder is not None:
            holder.communicate()
    content = {
        "name": Path(out).stem,
        "model": model,
        "workload": workload,
        "options": options,
        "config": configuration(model, options["layers"]),
        "failed": failed,
        "device": torch.cuda.get_device_name() if recording.cuda else "cpu",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "cuda": torch.version.cuda,
        "stages": recording.stages,
        "segments": recording.segments(),
        "workspaces": workspaces(recording),
        "events": recording.events,
    }
    off = None
    if recording.cuda:
        from benchmarks.accuracy import off_by
        from benchmarks.recordings import read
        from qwen_inspect.measuring.nvml import driver_version

        name = model.partition(":")[2] or Path(model).stem
        Path(out).write_bytes(pack(content, model=name, driver=driver_version() or "unknown"))
        off = off_by(read(Path(out)), content["config"]) if failed is None else None
    peak = max((stage[2].get("allocated_bytes.all.peak", 0) for stage in recording.stages[3:]), default=0)
    last = failed.strip().splitlines()[-1] if failed else None
    told = {"failed": last, "events": len(recording.events), "peak_allocated_bytes": peak, "off_by_bytes": off}
    print(json.dumps({**told, "seconds": round(time.perf_counter() - began, 1)}))
    return 0 if failed is None else 1


holder: Any = None  # the process beside, where there is one


if __name__ == "__main__":
    sys.exit(main())
