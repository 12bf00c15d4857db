# The relay and the persister in one small image; the command says which one runs.
FROM python:3.13-slim AS build
WORKDIR /src
COPY requirements.txt pyproject.toml README.md LICENSE ./
COPY relay relay
COPY persister persister
COPY migrations migrations
RUN python -m venv /app \
    && /app/bin/pip install --no-cache-dir --require-hashes -r requirements.txt \
    && /app/bin/pip install --no-cache-dir --no-deps --no-build-isolation . \
    && /app/bin/pip check \
    && /app/bin/pip uninstall --yes setuptools pip

FROM python:3.13-slim
COPY --from=build /app /app
ENV PATH=/app/bin:$PATH PYTHONUNBUFFERED=1
USER 10001:10001
EXPOSE 8000
CMD ["relay", "serve", "--host", "0.0.0.0"]
