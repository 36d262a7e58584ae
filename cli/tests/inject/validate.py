#!/usr/bin/env python3
"""Checks the golden outputs beside this file against the schemas of Kubernetes and of compose.

It needs `pip install kubernetes-validate check-jsonschema`. Exit codes: 0 all is valid, 1 not,
77 a module is missing, which is said.
"""

import json
import pathlib
import sys

HERE = pathlib.Path(__file__).parent
# Native sidecars are on by default from 1.29.
VERSIONS = ["1.29", "1.30", "1.31", "1.32", "1.33", "1.34"]


def documents(path):
    import yaml

    for document in yaml.safe_load_all(path.read_text()):
        yield from objects(document)


def objects(document):
    if document.get("kind") == "List":
        for item in document["items"]:
            yield from objects(item)
    else:
        yield document


def manifests():
    import kubernetes_validate

    checked = 0
    for path in sorted(HERE.glob("*.out.yaml")):
        if path.name.startswith("compose"):
            continue
        for document in documents(path):
            for version in VERSIONS:
                try:
                    kubernetes_validate.validate(document, version, strict=True)
                except kubernetes_validate.ValidationError as error:
                    yield f"{path.name}: {document['kind']}: {version}: {error}"
                checked += 1
    print(f"kubernetes-validate: {checked} checks, versions {', '.join(VERSIONS)}")
    if checked == 0:
        yield "no output was found"


def compose():
    import check_jsonschema
    import jsonschema
    import yaml

    vendor = pathlib.Path(check_jsonschema.__file__).parent / "builtin_schemas" / "vendor"
    schema = json.loads((vendor / "compose-spec.json").read_text())
    document = yaml.safe_load((HERE / "compose.out.yaml").read_text())
    for error in jsonschema.validators.validator_for(schema)(schema).iter_errors(document):
        yield f"compose.out.yaml: {error.json_path}: {error.message}"
    print("check-jsonschema: compose.out.yaml checked")


def main():
    problems, missing = [], []
    for check in (manifests, compose):
        try:
            problems += check()
        except ImportError as error:
            missing.append(f"SKIPPED {check.__name__}: no module {error.name}: pip install kubernetes-validate check-jsonschema")
    for line in problems + missing:
        print(line)
    sys.exit(1 if problems else 77 if missing else 0)


if __name__ == "__main__":
    main()
