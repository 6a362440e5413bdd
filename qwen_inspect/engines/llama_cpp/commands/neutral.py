"""Options of llama.cpp's programs that change no buffer.

Source: llama.cpp b11434 and ik_llama.cpp 8337e4cd3, common/arg.cpp and common.cpp.
"""

from __future__ import annotations

WITH_VALUE = frozenset(
    """
    -t --threads -tb --threads-batch -p --prompt -f --file -n --predict --n-predict -s --seed --temp --temperature --top-k
    --top-p --min-p --host --port --alias -a --api-key --chat-template --chat-template-file --repeat-penalty
    --presence-penalty --frequency-penalty --prio --numa -C --cpu-mask --reasoning-format --reasoning-budget --samplers
    --rope-freq-base --rope-freq-scale --keep --log-file --timeout -to --threads-http --cache-reuse --slot-save-path
    -td --threads-draft --spec-draft-threads -tbd --spec-draft-n-min --draft-min --draft-n-min --spec-draft-p-min
    --draft-p-min --hf-token -hft --cache-ram -cram --ctx-checkpoints --image --image-min-tokens --audio --grammar
    --json-schema --poll -sys --system-prompt -co -Cr --cpu-range --cpu-strict -Cb --cpu-mask-batch -Crb
    --cpu-range-batch --cpu-strict-batch --prio-batch --poll-batch -lcs --lookup-cache-static -lcd --lookup-cache-dynamic
    -ctxcp --swa-checkpoints -cms --checkpoint-min-step --chunks -sysf --system-prompt-file --in-file -bf --binary-file
    -ptc --print-token-count --prompt-cache -r --reverse-prompt --in-prefix --in-suffix --sampler-seq --sampling-seq
    --top-nsigma --top-n-sigma --xtc-probability --xtc-threshold --typical --typical-p --repeat-last-n --dry-multiplier
    --dry-base --dry-allowed-length --dry-penalty-last-n --dry-sequence-breaker --adaptive-target --adaptive-decay
    --dynatemp-range --dynatemp-exp --mirostat --mirostat-lr --mirostat-ent -l --logit-bias --grammar-file -j -jf
    --json-schema-file --rope-scaling --rope-scale --yarn-orig-ctx --yarn-ext-factor --yarn-attn-factor --yarn-beta-slow
    --yarn-beta-fast -gan --grp-attn-n -gaw --grp-attn-w -dt --defrag-thold --video --video-fps
    --video-timestamp-interval --video-ffmpeg-dir --tags -o --output --output-file -npp -ntg --path --cors-origins
    --cors-methods --cors-headers --api-prefix --ui-config --webui-config --ui-config-file --webui-config-file --tools
    --tools-runtime --mcp-servers-config --mcp-servers-json --api-key-file --ssl-key-file --ssl-cert-file
    --chat-template-kwargs --sse-ping-interval --media-path --models-dir --models-preset --models-max -rea --reasoning
    --reasoning-effort --reasoning-budget-message -sps --slot-prompt-similarity --sleep-idle-seconds --log-prompts-dir
    --log-colors -lv --verbosity --log-verbosity --spec-draft-threads-batch --threads-batch-draft --spec-draft-cpu-mask
    -Cd --cpu-mask-draft --spec-draft-prio --prio-draft --spec-draft-poll --poll-draft --spec-draft-p-split
    --draft-p-split -fitp --fit-print -ser
    --smart-expert-reduction
    """.split()  # noqa: SIM905
)
WITHOUT_VALUE = frozenset(
    """
    -v --verbose --mlock --jinja --no-jinja -cnv --conversation -no-cnv --no-conversation --no-warmup --warmup --metrics
    --slots --no-slots --props -e --escape --no-escape --color --verbose-prompt --no-webui --perf --no-perf --log-disable
    --offline --no-context-shift --context-shift -cb --cont-batching -nocb --no-cont-batching --ignore-eos --special
    --no-ui --ui --webui --version --display-prompt --no-display-prompt --cache-idle-slots --no-cache-idle-slots
    --show-timings --no-show-timings --prompt-cache-all --prompt-cache-ro -sp -st --single-turn -i --interactive -if
    --interactive-first -mli --multiline-input --in-prefix-bos --spm-infill --check-tensors --reuse-port
    --cors-credentials --no-cors-credentials --ui-mcp-proxy --webui-mcp-proxy --no-ui-mcp-proxy --no-webui-mcp-proxy
    --agent --no-agent --cache-prompt --no-cache-prompt --models-autoload --no-models-autoload --reasoning-preserve
    --no-reasoning-preserve --skip-chat-parsing --no-skip-chat-parsing --prefill-assistant --no-prefill-assistant
    --simple-io --log-verbose --log-prefix --no-log-prefix --log-timestamps --no-log-timestamps --log-jsonl --no-log-jsonl
    -pps -tgs --list-devices --kl-divergence --multiple-choice --hellaswag --winogrande -wb --warmup-batch
    """.split()  # noqa: SIM905
)
