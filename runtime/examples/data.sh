#!/usr/bin/env bash
# Fetches real data for the examples, by the name of the package that carries it, and prints what to do with it.
#
#   runtime/examples/data.sh FOLDER
#
# scikit-learn (PyPI): iris, digits, wine and breast cancer as CSV files without a header, the class in the last column.
set -euo pipefail

folder=${1:?the folder for the data is missing}
package=$(mktemp -d)
trap 'rm -rf "$package"' EXIT
mkdir -p "$folder"

python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
  --dest "$package" scikit-learn
python3 - "$package" "$folder" <<'PYTHON'
import gzip
import pathlib
import sys
import zipfile

package, folder = map(pathlib.Path, sys.argv[1:])
(wheel,) = package.glob("*.whl")
with zipfile.ZipFile(wheel) as files:
    for name, headers in [("iris.csv", 1), ("wine_data.csv", 1), ("breast_cancer.csv", 1), ("digits.csv.gz", 0)]:
        data = files.read(f"sklearn/datasets/data/{name}")
        if name.endswith(".gz"):
            data = gzip.decompress(data)
        lines = data.decode().splitlines()[headers:]
        (folder / name.removesuffix(".gz")).write_text("".join(f"{line}\n" for line in lines))
PYTHON

cat <<EXAMPLES
cargo run --release --example logistic -- --check --input $folder/breast_cancer.csv
cargo run --release --example svm -- --check --input $folder/digits.csv --class 3
cargo run --release --example kmeans -- --check -k 3 $folder/iris.csv
cargo run --release --example mds -- --check --input $folder/iris.csv
EXAMPLES
