/**
 * The environment variables of the process.
 */
import type { Environment } from "./find.ts"

const read = (name: string | symbol): string | undefined => {
  try {
    return typeof name === "string" ? process.env[name] : undefined
  } catch {
    return undefined
  }
}

/** Reads variables when they are asked for. Those that Deno does not let the program read count as not set. */
export const environment: Environment = new Proxy({}, { get: (_, name) => read(name) })
