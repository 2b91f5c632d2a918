-- Run once, when the database server starts with an empty volume: MLflow has a database of its own.
CREATE DATABASE mlflow;
