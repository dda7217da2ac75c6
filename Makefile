.PHONY: test lint types format docs bench

test:
	pytest

lint:
	ruff check .

types:
	mypy

format:
	ruff format .

docs:
	sphinx-build -W --keep-going docs docs/_build

bench:
	python -m benchmarks
