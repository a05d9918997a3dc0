"""An artefact behind HTTP: what may come in, how it is batched, what is answered."""
