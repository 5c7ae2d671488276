"""The network: mathematics only. It knows no loss, no optimizer and no mesh.

Axis glossary, used in every shape of this package:

    B  sequences of a batch        D  embed_dim, width of the residual stream
    C  candidates of an example    H  num_heads
    T  positions of a sequence     K  head_dim = D / H
    L  layers                      M  mlp_dim
    V  rows of the token table     N  outputs of the classifier

Parameters live outside as a nested dict of float32 arrays; `bind` makes a callable model of them.
"""
