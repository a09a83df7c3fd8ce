"""Networks from Patterson maps to density maps (paper, 2.3). Each is one module; `registry` lists them."""
