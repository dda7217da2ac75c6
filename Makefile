.PHONY: test lint types format

test:
	pytest

lint:
	ruff check .

types:
	mypy

format:
	ruff format .
