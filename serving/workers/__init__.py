"""Several server processes behind one port: a parent that answers nothing, and workers that share its socket."""
