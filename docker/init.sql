-- Run once by PostgreSQL in the database prefect: what the two servers need.
CREATE EXTENSION IF NOT EXISTS pg_trgm;
CREATE DATABASE mlflow;
