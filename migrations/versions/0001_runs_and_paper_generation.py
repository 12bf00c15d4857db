"""Conversations, runs, their life, and the paper generation."""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        CREATE TABLE conversations (
            id BIGINT PRIMARY KEY,
            user_id BIGINT NOT NULL,
            created_at TIMESTAMPTZ NOT NULL DEFAULT now()
        );

        CREATE TABLE research_pipeline_runs (
            run_id TEXT PRIMARY KEY,
            conversation_id BIGINT NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
            status TEXT NOT NULL DEFAULT 'pending'
                CHECK (status IN ('pending', 'running', 'completed', 'failed', 'cancelled')),
            error_message TEXT,
            created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
            finished_at TIMESTAMPTZ
        );
        CREATE INDEX idx_research_pipeline_runs_conversation_id ON research_pipeline_runs (conversation_id);

        CREATE TABLE research_pipeline_run_events (
            id BIGINT PRIMARY KEY,
            run_id TEXT NOT NULL,
            event_type TEXT NOT NULL,
            metadata JSONB NOT NULL,
            created_at TIMESTAMPTZ NOT NULL
        );
        CREATE INDEX idx_research_pipeline_run_events_run_id ON research_pipeline_run_events (run_id, id);
        CREATE INDEX idx_research_pipeline_run_events_created_at ON research_pipeline_run_events (created_at);

        CREATE TABLE rp_paper_generation_events (
            id BIGINT PRIMARY KEY,
            run_id TEXT NOT NULL,
            step TEXT NOT NULL,
            substep TEXT,
            progress DOUBLE PRECISION NOT NULL,
            step_progress DOUBLE PRECISION NOT NULL,
            details JSONB,
            created_at TIMESTAMPTZ NOT NULL
        );
        CREATE INDEX idx_rp_paper_generation_events_run_id ON rp_paper_generation_events (run_id, id);
        CREATE INDEX idx_rp_paper_generation_events_created_at ON rp_paper_generation_events (created_at);
    """)


def downgrade() -> None:
    op.execute("""
        DROP TABLE rp_paper_generation_events;
        DROP TABLE research_pipeline_run_events;
        DROP TABLE research_pipeline_runs;
        DROP TABLE conversations;
    """)
