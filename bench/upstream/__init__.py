"""The authors' own code: submodules under ``third_party/`` and what runs them apart from ours."""
