/**
 * The encoder of `examples/encoder`. See `encoder/latency.ts`.
 */
import "./support/sources.ts"

await import("./encoder/latency.ts")
