/**
 * Libraries that a program describes, loaded with koffi.
 */
import { load } from "../../cuda/foreignLibrary.ts"
import type { LibraryBackend } from "../shared/libraries.ts"

export class NativeLibraries implements LibraryBackend {
  readonly load = load
}
