"""The end of a report: what follows from its figures, and what they advise."""

from __future__ import annotations

TEXT = {
    "heading_advice": "结论与建议",
    "heading_limits": "各显卡上的上限",
    "heading_savings": "各项调整节省的显存",
    "conclude_heads": "KV 缓存每个 token 占 {now}，是 MHA（{query_heads} 个 Q 头各有 KV 头）所需 {mha} 的 {share}；{tokens:,} 个 token、批大小 {batch:,} 时为 {now_at}，而 MHA 需要 {mha_at}",
    "conclude_heads_some": "KV 缓存每个 token 占 {now}，若有 KV 头的 {layers:,} 层改用 MHA 则需 {mha}，现为其 {share}；{tokens:,} 个 token、批大小 {batch:,} 时为 {now_at}，而 MHA 需要 {mha_at}",
    "conclude_mha": "每个 Q 头都有自己的 KV 头（MHA），KV 缓存每个 token 占 {now}；{tokens:,} 个 token、批大小 {batch:,} 时为 {now_at}",
    "conclude_mha_grouped": "若采用 {heads} 个 KV 头的 GQA，每个 token 只需 {grouped}，减少 {saved}；KV 头数在训练时就已确定，推理时无法更改",
    "conclude_no_heads": "没有层按头保存 K 和 V，无法与 MHA 比较：缓存每个 token 占 {now}",
    "conclude_no_cache": "KV 缓存未知：{reason}",
    "conclude_largest": "提示词 {prompt:,} 个 token、批大小 {batch:,} 时，峰值中占用最多的是“{term}”：{size}，占已分配 {allocated} 的 {share}",
    "conclude_largest_range": "提示词 {prompt:,} 个 token、批大小 {batch:,} 时，峰值至少已分配 {allocated}，其中最多的是“{term}”：{size}，占 {share}",
    "conclude_largest_end": "提示词 {prompt:,} 个 token、批大小 {batch:,} 时，运行结束时已知的占用中最多的是“{term}”：{size}，占 {allocated} 的 {share}；峰值未知",
    "conclude_known": "“{term}”占 {size}，其余显存占用未知",
    "conclude_fits": "提示词 {prompt:,} 个 token、批大小 {batch:,} 可以放进 {gpu}（可用 {available}），它是所列显卡中能放下的最小的一张",
    "conclude_limits": "在 {gpu} 上，批大小 {batch:,} 时提示词的 token 数最大为 {context}；提示词 {prompt:,} 个 token 时批大小最大为 {most}",
    "conclude_fits_none": "提示词 {prompt:,} 个 token、批大小 {batch:,} 时，以下显卡都放不下：{gpus}",
    "conclude_saving": "节省最多的调整：{change}，由 {before} 降至 {after}（节省 {saved}）",
    "conclude_shorter": "提示词由 {prompt:,} 个 token 缩短为 {half:,} 个，KV 缓存减少 {saved}",
    "conclude_quantised": "权重已量化：占 {now}，每参数 {bits} 比特；16 比特时需要 {dense}",
    "limits_origin": "前者为批大小 {batch:,} 时的提示词 token 数，后者为提示词 {prompt:,} 个 token 时的序列数；均另生成 {new:,} 个 token，按较大的 CUDA 上下文计，与 fit 的结果一致。",
    "limits_partial": "表中为上文预测过的提示词长度中能放下的最长者（批大小 {batch:,}，另生成 {new:,} 个 token，按较大的 CUDA 上下文计）；– 表示该显卡的 kernel 与预测所依据的不同。精确的最大上下文与最大批大小需要追踪更多长度，报告中不做；运行以下命令可得：",
    "savings_origin": "KV 缓存按提示词 {prompt:,} 个 token、批大小 {batch:,} 计；不含激活值与 kernel 的临时显存，调整后能否放下请用 fit 判断。",
    "column_limit_context": "最大上下文（批大小 {batch:,}）",
    "column_limit_batch": "最大批大小（提示词 {prompt:,} 个 token）",
    "column_unchanged": "调整前",
    "column_changed": "调整后",
    "column_saved": "节省",
}
