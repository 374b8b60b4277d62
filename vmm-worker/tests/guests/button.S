/* Says that it is up, asks the event select register until the power button was pressed, says so, and switches itself
 * off. It polls, so that it runs on KVM back ends that cannot return from an interrupt. */
	.code32
	.section .note.pvh, "a", @note
	.align 4
	.long 4, 4, 18                  /* XEN_ELFNOTE_PHYS32_ENTRY */
	.asciz "Xen"
	.long _start
	.text
	.globl _start
_start:
	mov $0x80000, %esp
	mov $up, %esi
	call print
	mov $0x600, %dx                 /* event select */
1:	inb %dx, %al
	test $1, %al                    /* power button */
	jz 1b
	mov $pressed, %esi
	call print
	mov $0x604, %dx                 /* sleep control */
	mov $(5 << 2 | 1 << 5), %al     /* S5, enable */
	outb %al, %dx
2:	cli
	hlt
	jmp 2b

print:	mov $0x3f8, %dx
1:	mov (%esi), %al
	test %al, %al
	jz 2f
	outb %al, %dx
	inc %esi
	jmp 1b
2:	ret

up:	.asciz "button up\n"
pressed: .asciz "button pressed\n"
