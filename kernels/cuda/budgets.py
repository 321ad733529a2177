"""What the ops hold at once in the device's memory, and how large their tiles are."""

PLANE_WORDS = 1 << 26  # 32-bit words of bit planes held at once by the boolean product: 256 MiB
TILE_ELEMENTS = 1 << 25  # weights held at once: 128 MiB
FEWEST_NODES = 256  # whose cuts are found at once: an H200 has room for 264, a block each
SIDE = 64  # targets of a block of csrc/cuda/weigh.cu, of which a tile should have whole ones
TABLE_ELEMENTS = 1 << 23  # weights of a table: 32 MiB, and 152 MiB of edges if all are kept
SCRATCH_ELEMENTS = 1 << 27  # weights that edge_mass keeps for edge_levels: 512 MiB
