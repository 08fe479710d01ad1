# make demo            a cluster, a failover, nothing lost         make demo ARGS="--seconds 5"
# make test            all tests, with lint and types              make test ARGS="-k breaker"
# Both set up what they need. Without make: python3 do.py demo, python3 do.py test.
# PYTHON=python3.13 chooses the Python; otherwise the first fit one is found.

ANY_PYTHON := $(shell for name in python3 python3.14 python3.13 python3.12 python3.11; do \
	command -v $$name && break; done)

.PHONY: demo test
demo test:
	@$(if $(ANY_PYTHON),,$(error no python3 on PATH: install Python 3.11 or newer))\
	$(ANY_PYTHON) do.py $(if $(PYTHON),--python $(PYTHON)) $@ $(ARGS)
