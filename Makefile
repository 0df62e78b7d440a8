# What a person does with a fresh copy of the tree, each target from nothing. `make` lists them.
#
# For GNU make 3.81 (macOS) and up, and any POSIX sh.

VENV = .venv
ARGS =
# The interpreters to try, in this order; `make PYTHON=/path/to/python3.12 ...` tries that alone.
PYTHONS = $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11)
IN_VENV = $(VENV)/bin/python

.PHONY: help demo test bench faults fuzz tlsfuzzer clean

help:
	@echo 'make demo           two real Caddys in each other'\''s way, then with snimux in front'
	@echo 'make demo KEEP=1    the same, left running to try it with curl or a browser'
	@echo 'make test           the tests; ARGS go to pytest: make test ARGS="-k routes -x"'
	@echo 'make bench          snimux beside its peers, in a minute; ARGS go to python -m bench'
	@echo 'make faults         faults made on purpose, and what was lost; ARGS go to python -m faults'
	@echo 'make fuzz           look for bytes that break a reader; SECONDS=60 for each target'
	@echo 'make tlsfuzzer      its scripts, from a working tree TLSFUZZER=DIR, with and without snimux'
	@echo 'make clean          remove what the others made'
	@echo
	@echo 'All is installed into $(VENV) (VENV=...), by a Python from 3.11 up (PYTHON=...).'

demo: $(VENV)/.installed-demo
	@$(IN_VENV) -m demo $(if $(filter-out 0 no,$(KEEP)),--keep) $(ARGS)

test: $(VENV)/.installed-test
	@$(IN_VENV) -m pytest $(ARGS)

bench: $(VENV)/.installed-test
	@$(IN_VENV) -m bench --quick $(ARGS)

faults: $(VENV)/.installed-test
	@$(IN_VENV) -m faults $(ARGS)

SECONDS = 60
fuzz: $(VENV)/.installed-fuzz
	@$(IN_VENV) -m fuzz --seconds $(SECONDS) $(ARGS)

# The scripts want a tlslite-ng of their own, newer than that of the tests.
tlsfuzzer: $(VENV)/.installed-test
	@test -d '$(TLSFUZZER)/scripts' || \
	    { echo 'make: TLSFUZZER=DIR is to be a working tree of tlsfuzzer.' >&2; exit 1; }
	@test -x $(VENV)/tlsfuzzer/bin/python || $(IN_VENV) -m venv $(VENV)/tlsfuzzer
	@$(VENV)/tlsfuzzer/bin/pip install --quiet --disable-pip-version-check \
	    -r '$(TLSFUZZER)/requirements.txt'
	@$(IN_VENV) -m fuzz.tlsfuzzer --python $(VENV)/tlsfuzzer/bin/python $(ARGS) '$(TLSFUZZER)'

# pyvenv.cfg: whatever else VENV may name is not for this rule to remove.
clean:
	@if [ -f '$(VENV)/pyvenv.cfg' ]; then rm -rf '$(VENV)'; fi
	@rm -rf build dist snimux.egg-info .fuzz .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@rm -f .coverage .coverage.*
	@find */ -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp for each extra: installed again when what is to be installed has changed.
$(VENV)/.installed-demo $(VENV)/.installed-test $(VENV)/.installed-fuzz: $(VENV)/.made setup.cfg pyproject.toml
	@extra='$(patsubst $(VENV)/.installed-%,%,$@)'; \
	echo "Installing snimux[$$extra] into $(VENV) ..."; \
	$(IN_VENV) -m pip install --quiet --disable-pip-version-check -e ".[$$extra]"
	@touch '$@'

$(VENV)/.made:
	@for python in $(PYTHONS); do \
	    "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
	    if ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
	        version=$$("$$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	        echo "make: $$python cannot make virtual environments (no ensurepip)." >&2; \
	        echo "On Debian and Ubuntu: apt install python$$version-venv" >&2; \
	        exit 1; \
	    fi; \
	    "$$python" -m venv '$(VENV)' && touch '$@'; \
	    exit; \
	done; \
	echo 'make: no Python from 3.11 up found; tried: $(PYTHONS).' >&2; \
	echo 'Install one (apt install python3 python3-venv, brew install python,' >&2; \
	echo 'https://www.python.org/downloads/), or name it: make PYTHON=/path/to/python3' >&2; \
	exit 1
