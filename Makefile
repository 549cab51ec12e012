# Two commands: `make leaderboard` runs the quick profile, `make test` the tests.
# Each creates the environment on first use, from the package registry alone.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready

.PHONY: leaderboard test test-slow lint clean

leaderboard: $(READY)
	$(VENV)/bin/bench run

test: $(READY)
	$(VENV)/bin/python -m pytest --numprocesses auto --dist loadfile

test-slow: $(READY)
	$(VENV)/bin/python -m pytest -m slow

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile \
		--constraint constraints.txt --editable '.[dev]'
	@# On all cores; some files of the libraries are written for other Pythons.
	$(VENV)/bin/python -m compileall -qq -j 0 $(VENV)/lib bench attacks defenses || true
	touch $(READY)

clean:
	rm -rf $(VENV) .bench
