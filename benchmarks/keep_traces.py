"""Keeps in the package, for installs without torch, a trace of each shape of equal layers in the catalog and in reports/.

Each is held against a trace of the whole model, event by event, before it is written. Needs the torch extra.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from qwen_inspect.architectures import architecture_of
from qwen_inspect.loaders import catalog
from qwen_inspect.loaders.local import read_config
from qwen_inspect.predicting.kept_trace import WITNESS, dump
from qwen_inspect.predicting.period import deepen
from qwen_inspect.predicting.predict import SHIPPED, sample_request, shallow_trace, trace_name
from qwen_inspect.tracing.trace import trace

# transformers before 4.48 repeated K and V for flash attention: the published peaks of Qwen2.5 were measured so.
KERNELS = {
    "Qwen/Qwen2.5-0.5B": ("sdpa", "flash_attention_2_repeated"),
    "Qwen/Qwen2.5-7B": ("sdpa", "flash_attention_2_repeated"),
}


REPORTED = "reports/Custom-MHA-7.7B/config.json"


def main() -> None:
    SHIPPED.mkdir(exist_ok=True)
    known = catalog.entries()
    for model in sys.argv[1:] or [*KERNELS, *known, REPORTED]:
        config = read_config(Path(model)) if model == REPORTED else catalog.configuration(model, known)
        spec = architecture_of(config).spec
        for kernel in KERNELS.get(model, ("sdpa",)):
            path = SHIPPED / trace_name(spec, kernel)
            if path.exists():
                continue
            began = time.perf_counter()
            shallow = shallow_trace(spec, config, kernel)
            if shallow is None:  # its layers are not all alike: it is traced whole, when asked
                continue
            whole = trace(spec, config, sample_request(WITNESS, kernel))
            deep = deepen(shallow, len(spec.layers)).at(WITNESS)
            assert [type(event) for event in deep.events] == [type(event) for event in whole.events], model
            sizes = [[getattr(event, "size_bytes", 0) for event in one.events] for one in (deep, whole)]
            assert sizes[0] == sizes[1], model
            path.write_bytes(dump(shallow))
            print(f"{model} {kernel}: {path.stat().st_size:,} B, {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
