.DEFAULT_GOAL := help
.PHONY: help test lint types format coverage docs bench wheel lowest

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "%-10s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

test: ## run the tests
	pytest

lint: ## check style and imports
	ruff check .
	ruff format --check .
	lint-imports

types: ## check types
	mypy

format: ## put the style right
	ruff format .

coverage: ## run the tests and say how much of the package they run
	.ci/coverage

docs: ## build the documentation into docs/_build
	sphinx-build -W --keep-going docs docs/_build

bench: ## measure time, memory and correctness beside other implementations
	python -m benchmarks

wheel: ## build sdist and wheel, and test them in a fresh environment
	.ci/wheel

lowest: ## run the tests with the oldest dependencies
	.ci/lowest
