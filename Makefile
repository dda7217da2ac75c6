.PHONY: test lint types format docs bench wheel lowest

test:
	pytest

lint:
	ruff check .
	ruff format --check .
	lint-imports

types:
	mypy

format:
	ruff format .

docs:
	sphinx-build -W --keep-going docs docs/_build

bench:
	python -m benchmarks

wheel:
	.ci/wheel

lowest:
	.ci/lowest
