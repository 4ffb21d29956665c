"""A recurrent writer of bytes that starts from the image."""

from __future__ import annotations

from torch import Tensor, nn

from eyegraft.config import Positive, Strict
from eyegraft.types import Batch, Tokens


class Config(Strict):
    width: Positive = 24
    dropout: float = 0.2


class ByteTokenizer:
    """UTF-8 bytes as ids 0-255, 256 as the end."""

    eos_token_id = pad_token_id = 256
    bos_token = chat_template = None

    def __call__(self, text: str, add_special_tokens: bool = False) -> dict[str, list[int]]:
        return {"input_ids": list(text.encode())}

    def decode(self, ids: list[int]) -> str:
        return bytes(i for i in ids if i < 256).decode(errors="replace")

    def save_pretrained(self, folder: object) -> None:
        """Nothing to save: the alphabet is fixed."""


class TinyGRU(nn.Module):
    backbone = None
    context_length = 512

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.tokenizer = ByteTokenizer()
        self.embed, self.drop = nn.Embedding(257, width), nn.Dropout(dropout)
        self.cell, self.out = nn.GRU(width, width, batch_first=True), nn.Linear(width, 257)

    def forward(self, tokens: Tokens, batch: Batch) -> tuple[Tensor, Tensor]:
        states, _ = self.cell(self.drop(self.embed(batch.input_ids[:, :-1])), self._start(tokens))
        return self.out(states), batch.labels[:, 1:]

    def generate(self, tokens: Tokens, batch: Batch, *, max_new_tokens: int, num_beams: int = 1) -> list[str]:
        answers = []
        for row in range(len(batch)):
            ids, made = batch.input_ids[row : row + 1, : int(batch.text_mask[row].sum())], []
            state = self._start(Tokens(tokens.values[row : row + 1], tokens.mask[row : row + 1]))
            for _ in range(max_new_tokens):
                states, state = self.cell(self.embed(ids), state)
                ids = self.out(states[:, -1:]).argmax(-1)
                if ids.item() == self.tokenizer.eos_token_id:
                    break
                made.append(int(ids))
            answers.append(self.tokenizer.decode(made).strip())
        return answers

    def _start(self, tokens: Tokens) -> Tensor:
        return tokens.values.mean(1).unsqueeze(0).contiguous()


def input_dim(config: Config) -> int:
    return config.width


def build(config: Config, *, in_dim: int, num_outputs: int) -> TinyGRU:
    assert in_dim == config.width
    return TinyGRU(in_dim, config.dropout)
