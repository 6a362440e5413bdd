"""The graph that llama.cpp reserves compute buffers for: a micro-batch of a decoder, from a GGUF file's keys and tensors.

Source: llama.cpp b11549, src/llama-graph.cpp (llm_graph_context), src/models/*.cpp.
"""

from __future__ import annotations

from ..ggml.tensors import F32, I32, I64, Graph, Node, leaf, like, matmul, new, rows, set_rows, view
from .altup import AltUp
from .deepseek4 import DeepSeek4
from .design import READS_EMBEDDING
from .glm5_next import Glm5Next
from .hy_v4 import HyV4
from .kda import Kda
from .kimi_k3 import KimiK3
from .latent import Latent
from .mamba import Mamba
from .qwen4exp import Qwen4Exp
from .rwkv import Rwkv
from .t5 import T5


class Decoder(Qwen4Exp, HyV4, Latent, T5, KimiK3, DeepSeek4, Glm5Next, Rwkv, Mamba, Kda, AltUp):
    """Builds the graph."""

    def build(self) -> Graph:
        gathered = self._gathered()
        if gathered is not None and not self._design.altup:
            self.graph.expand(gathered)
        grams = self._grams()
        state = self._embedding()
        if gathered is not None:
            self._project(gathered, state)
        if self._design.altup:
            return self._output(self._altup(state, self._attention))
        if self._design.relative is not None:
            return self._output(self._t5(state))
        if self._read.compress_ratios:
            return self._output(self._deepseek4(state))
        if self._read.architecture == "glm5-next":
            return self._output(self._glm5_next(state))
        if self._read.architecture == "qwen4exp":
            return self._output(self._qwen4exp(state, grams))
        if self._read.architecture == "hy_v4":
            return self._output(self._hy_v4(state))
        if self._read.architecture == "kimi-k3":
            return self._output(self._kimi_k3(state))
        if self._read.recurrence.wkv_head_size:
            return self._output(self._rwkv(state))
        for layer in range(self._read.layers):
            state = self._layer(layer, state)
            if layer < self._deep_layers:
                whole, width = self._inputs["embedding"], self._read.embedding
                part = view(whole, (width, self._batch.tokens), (whole.strides[1],), 4 * width * (layer + 1))
                state = like("ADD", state, part)
        return self._output(state)

    def _output(self, state: Node) -> Graph:
        chosen = self._input("out_ids", I32, self._batch.outputs)
        keeps_state = self._design.keeps_state and self._batch.build.rows_in_layer
        if keeps_state or self._design.rows_at == "end":
            state.is_output = True  # for multi-token prediction: llm_graph_result::set_outputs
        if self._rows_at == "end":
            state = rows(state, chosen)
        if self._design.output_norm is not None:
            state = self._norm(state, self._design.output_norm)
        state.is_output = True
        if self._rows_at == "norm":
            state = rows(state, chosen)
            state.is_output = True
        states = state
        if self._design.logits == "never" or (self._design.logits == "unless_embedding" and self._batch.embeds):
            self.graph.expand(state)
            if self._batch.embeds:
                self._pool(states)
            return self.graph
        if self._design.scaled_output:
            state = like("SCALE", state)
        place = None if self._read.architecture in READS_EMBEDDING else "output.weight"
        head = self._weight("output.weight") or self._weight("token_embd.weight", place)
        assert head is not None
        state = matmul(head, state)
        state = self._with_bias(state, "output.bias")
        if (self._key("logit_scale") or self._design.scaled_throughout) and self._design.scaled_logits:
            state = like("SCALE", state)
        if self._design.capped or (self._design.capped_by_key and self._key("final_logit_softcapping")):
            state = like("SCALE", like("UNARY", like("SCALE", state)))
        self.graph.expand(state)
        if self._batch.embeds:
            self._pool(states)
        return self.graph

    def _embedding(self) -> Node:
        """Source: build_inp_embd. Inputs that are not used are allocated all the same."""
        tokens, width = self._batch.tokens, self._read.embedding * (1 + self._deep_layers)
        build = self._batch.build
        mixed = build.mixed_input and not self._design.unmixed
        inputs = [self._input("tokens", I32, tokens), *([leaf(I32, tokens)] if mixed else ())]
        gathered = [self.graph.expand(rows(self._needed("token_embd.weight"), indices)) for indices in inputs]
        if width > self._read.embedding:
            gathered = [new("PAD", (width, *node.shape[1:]), node) for node in gathered]
        state = self.graph.expand(gathered[0])
        if build.embedding_input:
            self.graph.expand(leaf(F32, width, tokens))
        for further in gathered[1:]:
            given = like("DUP", leaf(F32, width, tokens))
            self.graph.expand(set_rows(given, further, leaf(I64, tokens)))
        if self._deep_layers:
            self._inputs["embedding"] = state
            state = view(state, (self._read.embedding, tokens), (state.strides[1],))
        if self._key("embedding_scale") or self._design.scaled_throughout:
            state = like("SCALE", state)
        if self._design.scaled_rows and build.mixed_input:
            state = like("MUL", state, leaf(F32, 1, tokens))
        self.graph.expand(state)
        if self._design.scaled_embedding or (self._design.scaled_rows and not build.mixed_input):
            state = like("SCALE", state)
        state = self._typed(state)
        if self._design.normed_embedding:
            return like("RMS_NORM", state)
        norm = "token_embd_norm"
        return state if self._design.output_norm == norm else self._norm_if_any(state, norm)

    @property
    def _rows_at(self) -> str:
        return "layer" if self._batch.build.rows_in_layer else self._design.rows_at

    def _takes_rows(self, layer: int) -> bool:
        return layer == self._read.layers - 1 and self._rows_at == "layer"

    @property
    def _deep_layers(self) -> int:
        """First layers that an image's further embeddings are added to. Source: n_deepstack_layers."""
        return int(self._key("n_deepstack_layers") or 0)

    def _layer(self, layer: int, inputs: Node) -> Node:
        if self._design.norms_after:
            return self._after(layer, inputs, self._takes_rows(layer))
        return self._single(layer, inputs) if self._design.single else self._double(layer, inputs)

    def _single(self, layer: int, inputs: Node) -> Node:
        """A layer of one part: states, attention or a feed-forward block."""
        normed = self._norm_if_any(inputs, f"blk.{layer}.attn_norm")
        if self._read.recurrent[layer]:
            result = self._mamba(layer, normed)
        elif self._read.feed_forward[layer]:
            result = self._feed_forward(layer, normed)
        else:
            result = self._attention(layer, normed)
        if self._takes_rows(layer):
            chosen = self._input("out_ids", I32, self._batch.outputs)
            result, inputs = rows(result, chosen), rows(inputs, chosen)
        return like("ADD", result, inputs)

    def _double(self, layer: int, inputs: Node) -> Node:
        """A layer of attention or states, then a feed-forward block."""
        prefix, design = f"blk.{layer}.", self._design
        normed = self._norm_before(inputs, f"{prefix}attn_norm")
        if design.norms_apart:
            self.graph.expand(normed)
        second = f"{prefix}attn_norm_2"  # Falcon 40B
        attended = self._mixed(layer, self._norm(inputs, second) if self._has(second) else normed, inputs)
        if f"{prefix}ffn_down.weight" not in self._tensors and not self._read.experts.count:
            return inputs  # DeciLM drops the attention of a layer without a feed-forward block
        router = self._linear(f"{prefix}ffn_gate_inp", inputs) if design.early_router else None
        chosen, takes_rows = self._input("out_ids", I32, self._batch.outputs), self._takes_rows(layer)
        if design.rows_after_norm:
            attended = self._norm(attended, f"{prefix}post_attention_norm")
        if takes_rows and not design.rows_of_sum:
            attended, inputs, normed = (rows(node, chosen) for node in (attended, inputs, normed))
            router = router and rows(router, chosen)
        if design.parallel and self._key("use_parallel_residual") is not False:
            before = inputs if self._has(f"{prefix}ffn_norm") else normed
            forward = self._feed_forward(layer, self._norm_if_any(before, f"{prefix}ffn_norm"))
            if design.parallel == "residual":
                return like("ADD", like("ADD", forward, inputs), attended)
            both = like("ADD", attended, forward) if design.forward_last else like("ADD", forward, attended)
            return like("ADD", both, inputs)
        norm, after = f"{prefix}ffn_norm", f"{prefix}post_attention_norm"
        if self._has(norm) or self._has(f"{prefix}post_ffw_norm"):
            if not design.rows_after_norm:
                attended = self._norm_if_any(attended, after if self._has(after) else f"{prefix}attn_output_norm")
        else:
            norm = after if self._has(after) else f"{prefix}attn_output_norm"
        attended = self._scaled(attended)
        if not self._read.heads[layer]:
            middle = attended
        else:
            middle = like("ADD", inputs, attended) if design.residual_first else like("ADD", attended, inputs)
        if takes_rows and design.rows_of_sum:
            middle = rows(middle, chosen)
        alone = not (self._has(norm) or self._has(f"{prefix}post_ffw_norm") or design.bare_norms)  # StableLM 2 12B
        if self._has(f"{prefix}pre_ffw_norm_2"):
            forward = self._two_blocks(layer, middle)
        elif self._has(f"{prefix}ffn_norm_exps"):  # Arctic's experts read the layer's input
            middle = like("ADD", self._dense(self._norm(middle, norm), prefix, ""), middle)
            forward = self._feed_forward(layer, self._norm(inputs, f"{prefix}ffn_norm_exps"))
        else:
            forward = self._feed_forward(layer, normed if alone else self._norm_before(middle, norm), router)
        last = f"{prefix}post_ffw_norm"
        forward = self._scaled(self._norm_if_any(forward, last if self._has(last) else f"{prefix}layer_output_norm"))
        result = like("ADD", middle, forward) if design.forward_last else like("ADD", forward, middle)
        if "by_layer" in self._inputs:
            result = like("ADD", result, self._of_layer(layer, result))
        scale = self._weight(f"{prefix}layer_output_scale.weight")
        return result if scale is None else like("MUL", result, scale)

    def _mixed(self, layer: int, normed: Node, inputs: Node) -> Node:
        """Attention or states; for Falcon-H1 both, each with a norm of the layer's input; for DeciLM a matrix or nothing."""
        if not self._read.heads[layer]:
            return inputs
        if not self._read.recurrent[layer]:
            name = f"blk.{layer}.attn_output"
            return self._attention(layer, normed) if self._read.kv_heads[layer] else self._linear(name, normed)
        if not self._read.attends(layer):
            return self._recurrent(layer, normed)
        attended = self._attention(layer, normed)
        return like("ADD", attended, self._recurrent(layer, self._norm(inputs, f"blk.{layer}.attn_norm")))

    def _norm_if_any(self, node: Node, name: str) -> Node:
        return self._norm(node, name) if self._has(name) else node

    def _norm_before(self, node: Node, name: str) -> Node:
        """The norm of what attention or a feed-forward block reads; OLMo's have no weights."""
        return self._norm(node, name) if self._design.bare_norms else self._norm_if_any(node, name)

    def _scaled(self, node: Node) -> Node:
        return like("SCALE", node) if self._design.scaled_residual or self._key("residual_scale") else node
