"""Ways of proposing sets of atoms for a map. Each is one `Method` in a module of its own; `registry` lists them."""
