"""How far the stages of a run are."""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        CREATE TABLE rp_run_stage_progress_events (
            id BIGINT PRIMARY KEY,
            run_id TEXT NOT NULL,
            stage TEXT NOT NULL,
            iteration BIGINT NOT NULL,
            max_iterations BIGINT NOT NULL,
            progress DOUBLE PRECISION NOT NULL,
            total_nodes BIGINT NOT NULL,
            buggy_nodes BIGINT NOT NULL,
            good_nodes BIGINT NOT NULL,
            best_metric TEXT,
            eta_s BIGINT,
            latest_iteration_time_s BIGINT,
            occurred_at TIMESTAMPTZ,
            created_at TIMESTAMPTZ NOT NULL
        );
        CREATE INDEX idx_rp_run_stage_progress_events_run_id ON rp_run_stage_progress_events (run_id, id);
        CREATE INDEX idx_rp_run_stage_progress_events_created_at ON rp_run_stage_progress_events (created_at);
    """)


def downgrade() -> None:
    op.execute("DROP TABLE rp_run_stage_progress_events")
