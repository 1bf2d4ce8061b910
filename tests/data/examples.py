"""Small facts that several data tests share."""

from glm_dist.data.tokenizer.special_tokens import SpecialTokens

BERT = SpecialTokens(
    pad=0,
    eos=0,
    cls=101,
    mask=103,
    sop=30522,
    eop=30523,
    gmask=30524,
    smask=30525,
    unk=100,
    sep=102,
    block_mask=30526,
)
