# What the benches do, on DuckDB, Polars and Spark, with two threads: SYSTEM WORK PATH... Prints the seconds that the
# work took without the start of the interpreter and of the system, the peak of memory, and the answer. Works that are about
# starting take a number of runs for a path, and say themselves how long they took.
import os, resource, sys, time

system, work, *paths = sys.argv[1:]
TABLES = {"left": ["id", "g", "v1"], "right": ["id", "v2"]}


def of_duckdb():
    import duckdb
    db = duckdb.connect()
    db.execute("SET threads = 2")

    def table(path, names):
        columns = ", ".join(f"'{name}': 'BIGINT'" for name in names)
        return f"read_csv('{path}', header = false, columns = {{{columns}}})"

    def text(path):
        return f"read_csv('{path}', header = false, columns = {{'line': 'VARCHAR'}}, delim = '\x01', quote = '', escape = '')"

    def wordcount():
        words = f"SELECT unnest(string_split(line, ' ')) AS w FROM {text(paths[0])}"
        counts = f"SELECT count(*) AS c FROM ({words}) WHERE w <> '' GROUP BY w"
        return "distinct=%d total=%d top=%d" % db.execute(f"SELECT count(*), sum(c), max(c) FROM ({counts})").fetchone()

    def sort():
        lines = f"SELECT line || chr(13) FROM {text(paths[0])} ORDER BY line[1:10]"
        db.execute(f"COPY ({lines}) TO '{paths[1]}' (FORMAT csv, HEADER false, QUOTE '', ESCAPE '', DELIMITER '\x01')")
        return "sorted"

    def group():
        groups = f"SELECT g, sum(v1) AS s, count(*) AS n FROM {table(paths[0], TABLES['left'])} GROUP BY g"
        return "groups=%d sum=%d rows=%d" % db.execute(f"SELECT count(*), sum(s), sum(n) FROM ({groups})").fetchone()

    def join():
        both = f"{table(paths[0], TABLES['left'])} AS a JOIN {table(paths[1], TABLES['right'])} AS b USING (id)"
        groups = f"SELECT g, sum(v1 * v2) AS s, count(*) AS n FROM {both} GROUP BY g"
        return "groups=%d sum=%d rows=%d" % db.execute(f"SELECT count(*), sum(s), sum(n) FROM ({groups})").fetchone()

    return locals()[work]


def of_polars():
    os.environ["POLARS_MAX_THREADS"] = "2"
    import polars as pl

    def text(path):
        return pl.scan_csv(path, has_header=False, new_columns=["line"], separator="\x01", quote_char=None)

    def table(path, names):
        return pl.scan_csv(path, has_header=False, new_columns=names)

    def collect(frame):
        return frame.collect(engine="streaming")

    def wordcount():
        words = text(paths[0]).select(pl.col("line").str.split(" ").explode().alias("w")).filter(pl.col("w") != "")
        counts = words.group_by("w").agg(pl.len().alias("c"))
        found = collect(counts.select(pl.len().alias("d"), pl.col("c").sum().alias("t"), pl.col("c").max().alias("m")))
        return "distinct=%d total=%d top=%d" % found.row(0)

    def totals(groups):
        found = collect(groups.select(pl.len().alias("d"), pl.col("s").sum().alias("t"), pl.col("n").sum().alias("m")))
        return "groups=%d sum=%d rows=%d" % found.row(0)

    def group():
        left = table(paths[0], TABLES["left"])
        return totals(left.group_by("g").agg(pl.col("v1").sum().alias("s"), pl.len().alias("n")))

    def join():
        both = table(paths[0], TABLES["left"]).join(table(paths[1], TABLES["right"]), on="id")
        product = (pl.col("v1") * pl.col("v2")).sum().alias("s")
        return totals(both.group_by("g").agg(product, pl.len().alias("n")))

    return locals()[work]


def since_start():
    """Seconds since this process was started, to a hundredth."""
    ticks = int(open("/proc/self/stat").read().rsplit(")", 1)[1].split()[19])
    return float(open("/proc/uptime").read().split()[0]) - ticks / os.sysconf("SC_CLK_TCK")


def of_spark():
    from pyspark.sql import SparkSession, functions as f
    builder = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
    spark = builder.config("spark.sql.shuffle.partitions", "2").config("spark.driver.memory", "4g").getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")

    def table(path, names):
        return spark.read.csv(path, schema=", ".join(f"{name} LONG" for name in names))

    def totals(groups, line):
        return line % tuple(groups.agg(f.count("*"), f.sum("s"), *[f.max("s") if "top" in line else f.sum("n")]).first())

    def wordcount():
        words = spark.read.text(paths[0]).select(f.explode(f.split("value", " ")).alias("w")).where("w <> ''")
        return totals(words.groupBy("w").agg(f.count("*").alias("s")), "distinct=%d total=%d top=%d")

    def group():
        left = table(paths[0], TABLES["left"])
        groups = left.groupBy("g").agg(f.sum("v1").alias("s"), f.count("*").alias("n"))
        return totals(groups, "groups=%d sum=%d rows=%d")

    def join():
        both = table(paths[0], TABLES["left"]).join(table(paths[1], TABLES["right"]), "id")
        groups = both.groupBy("g").agg(f.sum(f.col("v1") * f.col("v2")).alias("s"), f.count("*").alias("n"))
        return totals(groups, "groups=%d sum=%d rows=%d")

    def start():
        """From the start of the process to the first result."""
        assert spark.range(2).repartition(2, "id").count() == 2
        return "rounds", since_start()

    def again():
        """A job on records in memory, again and again in a session that runs, after as many runs to warm up."""
        cached = spark.range(2).cache()
        job = cached.repartition(2, "id")
        for _ in range(int(paths[0])):
            assert job.count() == 2
        begun = time.monotonic()
        for _ in range(int(paths[0])):
            assert job.count() == 2
        return "rounds", time.monotonic() - begun

    return locals()[work]


run = {"duckdb": of_duckdb, "polars": of_polars, "spark": of_spark}[system]()
start = time.monotonic()
answer, seconds = run(), time.monotonic() - start
if isinstance(answer, tuple):
    answer, seconds = answer
print("seconds=%.6f" % seconds)
print("peak_bytes=%d" % (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10))
print("answer=" + answer)
