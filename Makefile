# The daily tasks, one command each; CONTRIBUTING.md says when to use which. Everything is built into build/ and .venv/.
.PHONY: build fast test lint format fresh release ci clean
PYTHON ?= python3
native := build/native
tools := .venv/bin
run := TF_NATIVE_DIR=$(CURDIR)/$(native) PYTHONPATH=$(CURDIR)/src PATH=$(CURDIR)/$(tools):$$PATH $(tools)/python

.venv/.made: pyproject.toml packaging/lint.txt
	$(PYTHON) -m venv .venv
	$(tools)/pip install --quiet '.[test]' -r packaging/lint.txt
	touch $@

build: .venv/.made # C and generated code, with warnings as errors
	[ -f build/dev/build.ninja ] || $(tools)/cmake -S . -B build/dev -G Ninja -DTP_WERROR=ON
	$(tools)/cmake --build build/dev
	$(tools)/cmake --install build/dev --component product --prefix $(native) > /dev/null

fast: build # what every change should pass: under a minute
	$(run) -m pytest -n 3 -m fast

test: build # everything that needs no GPU: about 25 minutes on two cores
	$(run) -m pytest -n 3

lint: .venv/.made
	$(tools)/ruff check .
	$(tools)/ruff format --check .
	$(tools)/mypy
	git ls-files '*.c' '*.h' | xargs $(tools)/clang-format --dry-run -Werror

format: .venv/.made
	$(tools)/ruff format .
	git ls-files '*.c' '*.h' | xargs $(tools)/clang-format -i

fresh: # README's lines on fresh roots of Debian 12 and 13; needs root and debootstrap, takes an hour
	for release in 12 13; do for line in demo tests; do tools/fresh-machine $$release $$line || exit; done; done

release: .venv/.made # into dist/: the archives of a release, tried
	$(tools)/python tools/release.py --out dist

ci:
	.ci/run

clean:
	rm -rf build
