"""tokenpass's own operators, one file each: schema, fake kernel, reference and cost."""
